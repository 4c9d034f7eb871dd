"""Small structure files."""

import gemmi
import torch

from plasma_hf.models.protein import Structure

FULL = ("N", "CA", "C", "O")


def structure_of(sequence, atoms):
    """Make a structure of N, CA and C, `(residues, 3, 3)`, without any O."""
    backbone = torch.nn.functional.pad(atoms, (0, 0, 0, 1), value=torch.nan)
    numbers = tuple(str(i + 1) for i in range(len(sequence)))
    return Structure("p", sequence, backbone, numbers, ("A",) * len(sequence))


def atom_at(name, place, altloc="\0", occupancy=1.0):
    atom = gemmi.Atom()
    atom.name, atom.element = name, gemmi.Element(name[0])
    atom.pos, atom.altloc, atom.occ = gemmi.Position(*place), altloc, occupancy
    return atom


def write_structure(path, chains):
    """Write chains of `(residue name, atom names)`; atom k of residue n is at (3.8 n, k, 0)."""
    structure = gemmi.Structure()
    structure.add_model(gemmi.Model(1))
    for name, residues in chains.items():
        chain = gemmi.Chain(name)
        for number, (residue_name, atoms) in enumerate(residues, start=1):
            residue = gemmi.Residue()
            residue.name, residue.seqid = residue_name, gemmi.SeqId(str(number))
            residue.het_flag = "H" if residue_name in ("MSE", "HOH") else "A"
            for k, atom in enumerate(atoms):
                known = isinstance(atom, gemmi.Atom)
                residue.add_atom(atom if known else atom_at(atom, (3.8 * number, k, 0)))
            chain.add_residue(residue)
        structure[0].add_chain(chain)
    structure.setup_entities()
    if path.suffix == ".cif":
        structure.make_mmcif_document().write_file(str(path))
    else:
        structure.write_pdb(str(path))
    return path


THREE = dict(zip("ACDEFGHIKLMNPQRSTVWY", (
    "ALA CYS ASP GLU PHE GLY HIS ILE LYS LEU MET ASN PRO GLN ARG SER THR VAL TRP TYR"
).split(), strict=True))  # fmt: skip


def backbone_of(residues, x=0.0):
    """Return N, CA, C and O of a stretched chain, `(residues, 4, 3)`, its residues bound."""
    start = torch.arange(residues)[:, None, None] * torch.tensor([3.8, 0, 0])
    atoms = torch.tensor([[0, 0, 0], [1.4, 0.3, 0], [2.6, -0.4, 0], [2.6, -1.6, 0]])
    return (start + atoms + torch.tensor([0, x, 0])).round(decimals=3)


def atom_rows(chains):
    """Yield chain by chain the atoms of `(name, label, residues, numbers, backbone)` as dicts."""
    for name, label, residues, numbers, backbone in chains:
        yield [
            {
                "group_PDB": "HETATM" if residue == "MSE" else "ATOM",
                "type_symbol": atom[0],
                "label_atom_id": atom,
                "label_alt_id": ".",
                "label_comp_id": residue,
                "label_asym_id": label,
                "label_seq_id": str(i),
                "pdbx_PDB_ins_code": number.lstrip("-0123456789") or "?",
                **dict(zip(("Cartn_x", "Cartn_y", "Cartn_z"), place, strict=True)),
                "occupancy": "1.0",
                "auth_seq_id": number.rstrip("ABCDEFGHIJ"),
                "auth_asym_id": name or "''",
                "pdbx_PDB_model_num": "1",
            }
            for i, (residue, number, places) in enumerate(
                zip(residues, numbers, backbone.tolist(), strict=True), start=1
            )
            for atom, place in zip(FULL, places, strict=True)
        ]


def pdb_text(chains, between="TER"):
    """Write chains as PDB text, with TER, END or nothing between, or labels as segment names."""
    lines = []
    for rows in atom_rows(chains):
        for a in rows:
            segment = a["label_asym_id"] if between == "segment" else ""
            place = "".join(f"{a[axis]:8.3f}" for axis in ("Cartn_x", "Cartn_y", "Cartn_z"))
            name, code = a["auth_asym_id"].strip("'"), a["pdbx_PDB_ins_code"].strip("?")
            lines.append(
                f"{a['group_PDB']:6}{len(lines) % 99999 + 1:5}  {a['label_atom_id']:3} "
                f"{a['label_comp_id']:4}{name:1}{a['auth_seq_id']:>4}{code:1}   {place}  1.00  0.00"
                f"      {segment:4}{a['type_symbol']:>2}"
            )
        lines += {"TER": ["TER"], "END": ["TER", "END"]}.get(between, [])
    return "\n".join([*lines, "END", ""])


def cif_text(chains, without=()):
    """Write chains as mmCIF text, `without` some columns."""
    rows = [row for chain in atom_rows(chains) for row in chain]
    names = [name for name in rows[0] if name not in without]
    head = ["data_x", "loop_", *(f"_atom_site.{name}" for name in names)]
    return "\n".join([*head, *(" ".join(str(row[n]) for n in names) for row in rows), "#", ""])
