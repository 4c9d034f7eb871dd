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
