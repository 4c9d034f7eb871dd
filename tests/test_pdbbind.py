"""PDBbind from small trees in the layouts of its releases, and from real complexes."""

import doctest
import sys
from pathlib import Path

import pytest
from conftest import SHARED

from tests.helpers.structures import FULL, atom_at, write_structure

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets_scripts"))
import dataset_folder
import pdbbind_reader
from dataset_folder import SPLITS
from pdbbind_reader import (
    CHAIN_CHOICES,
    PAPER_COUNTS,
    deduplicate,
    open_pdbbind,
    read_complex,
    read_core_set,
    read_index,
    read_name_index,
    select,
)

LETTERS = {"A": "ALA", "G": "GLY", "K": "LYS", "M": "MET", "V": "VAL", "X": "UNK", "m": "MSE"}


def chain(letters, z=0.0, atoms=FULL):
    """Give residues in a row, at a height of their own."""
    return [
        (LETTERS[letter], [atom_at(name, (3.8 * n, k, z)) for k, name in enumerate(atoms)])
        for n, letter in enumerate(letters, start=1)
    ]


def write_complex(folder, pocket=None, **chains):
    folder.mkdir(parents=True)
    code = folder.name
    written = {name: chain(text, z=10 * n) for n, (name, text) in enumerate(chains.items())}
    write_structure(folder / f"{code}_protein.pdb", written)
    if pocket:
        write_structure(folder / f"{code}_pocket.pdb", {" ": written[pocket][:3]})


GENERAL = """# a comment
1aaa  2.00  2001   3.15  Kd=700uM      // 1aaa.pdf (7-mer)
1aab   NMR  1997   5.47  Ki~3.4uM      // 1aab.pdf (LIG) incomplete
1bbb  1.80  2005   6.00  IC50<=1uM     // 1bbb.pdf (ABC)
1ccc  1.90  2006   7.00  Ki=100nM      // 1ccc.pdf (ABC)
"""
REFINED = "\n".join(GENERAL.splitlines()[-2:]) + "\n"
NAMES = """# code, year, UniProt, name
1aaa  2001  P00001  SERINE/THREONINE KINASE
1aab  1997  ------  UNKNOWN PEPTIDE
1ccc  2006  P00003  THROMBIN
"""
CORE = "#code resl year logKa Ka target\n1ccc  1.90  2006   7.00  Ki=100nM  12\n"


def write_indexes(folder, year):
    folder.mkdir(parents=True)
    (folder / f"INDEX_general_PL_data.{year}").write_text(GENERAL)
    (folder / f"INDEX_refined_data.{year}").write_text(REFINED)
    (folder / f"INDEX_general_PL_name.{year}").write_text(NAMES)


@pytest.fixture(params=["2016", "2020"])
def tree(tmp_path, request):
    root, year = tmp_path / "pdbbind", request.param
    other, index = {
        "2016": ("general-set-except-refined", root / "index"),
        "2020": ("v2020-other-PL", root / "PDBbind_v2020_plain_text_index" / "index"),
    }[year]
    write_indexes(index, year)
    write_complex(root / other / "1aaa", A="MKVA", B="MKVAGG", pocket="A")
    write_complex(root / other / "1aab", A="MKV", pocket="A")
    write_complex(root / "refined-set" / "1bbb", A="GGAAM", pocket="A")
    write_complex(root / "refined-set" / "1ccc", A="MKV", pocket="A")
    core = root / "CASF-2016"
    write_complex(core / "coreset" / "1ccc", A="MKV", pocket="A")
    (core / "power_screening").mkdir()
    (core / "power_screening" / "CoreSet.dat").write_text(CORE)
    return root


@pytest.mark.parametrize("module", [dataset_folder, pdbbind_reader])
def test_examples_of_the_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


def test_layouts_and_sets(tree):
    release = open_pdbbind(tree)
    assert release.codes == {"train": ["1aaa", "1aab"], "validation": ["1bbb"], "test": ["1ccc"]}
    assert release.invalid == []
    assert release.folders["1ccc"].parent.name == "coreset"
    assert [release.family(code) for code in ("1aaa", "1aab", "1ccc", "9zzz")] == [
        *("P00001", None, "target 12", None)
    ]
    record = release.records["1ccc"]
    assert (record.affinity, record.uniprot, record.name) == (7.0, "P00003", "THROMBIN")
    assert release.records["1aab"].resolution is None
    with pytest.raises(ValueError, match="no index files of 1999, only of 20"):
        open_pdbbind(tree, version="1999")


def test_chain_choices(tree):
    release = open_pdbbind(tree)
    sequences = {choice: read_complex(release, "1aaa", choice).sequence for choice in CHAIN_CHOICES}
    assert sequences == {
        "first": "MKVA",
        "longest": "MKVAGG",
        "concat": "MKVAMKVAGG",
        "pocket": "MKVA",  # the pocket file names no chain
    }
    pair = read_complex(release, "1aaa")
    assert (pair.id, pair.structure.id, pair.family) == ("1aaa", "1aaa_protein.pdb:B", "P00001")


def test_equal_sequences_stay_in_test_first(tree):
    release = open_pdbbind(tree)
    kept, report = select(release, try_all=True)
    assert kept == {"train": ["1aaa"], "validation": ["1bbb"], "test": ["1ccc"]}
    assert report.read == {"train": 2, "validation": 1, "test": 1}
    assert report.tried["longest", "split"]["train"] == 2
    assert len(report.tried) == len(CHAIN_CHOICES) * 3
    text = report.to_markdown()
    assert "| ProtAlign paper | 10,071 | 3,387 | 215 |" in text
    assert "| kept | 1 | 1 | 1 |" in text
    assert report.to_dict()["paper"] == PAPER_COUNTS
    with pytest.raises(ValueError, match="no choice 'best'; give first"):
        select(release, "best")


def test_deduplication_within_a_split():
    codes = {"train": ["1a", "1b"], "validation": ["1c"], "test": ["1d"]}
    same = dict.fromkeys("1a 1b 1c 1d".split(), "MKV")
    kept = {how: deduplicate(codes, same, how) for how in ("global", "split", "none")}
    assert [len(kept["global"][split]) for split in SPLITS] == [0, 0, 1]
    assert [len(kept["split"][split]) for split in SPLITS] == [1, 1, 1]
    assert kept["none"] == codes


def test_bad_complexes_lose_only_themselves(tree):
    place = next(tree.glob("*/1aaa"))
    (place / "1aaa_protein.pdb").write_text("nothing")
    (tree / "refined-set" / "1bbb" / "1bbb_protein.pdb").unlink()
    kept, report = select(open_pdbbind(tree))
    assert kept == {"train": [], "validation": [], "test": ["1ccc"]}
    reasons = {record.id: record.reason for record in report.invalid}
    assert "not a valid structure" in reasons["1aaa"]
    assert reasons["1bbb"] == "its folder has no 1bbb_protein.pdb"
    assert "- 1bbb: its folder" in report.to_markdown()


def test_without_a_pocket_only_that_choice_fails(tree):
    next(tree.glob("*/1aaa/1aaa_pocket.pdb")).unlink()
    release = open_pdbbind(tree)
    assert read_complex(release, "1aaa").sequence == "MKVAGG"
    _, report = select(release, "pocket")
    assert [record.id for record in report.invalid] == ["1aaa"]


def test_residues_without_letter_or_place(tmp_path):
    write_complex(tmp_path / "1aaa", A="MXmV")
    write_structure(tmp_path / "1aaa" / "1aaa_protein.pdb", {
        "A": [*chain("MXm"), *chain("V", atoms=("N",))]
    })  # fmt: skip
    release = open_pdbbind(tmp_path)
    assert read_complex(release, "1aaa").sequence == "MM"  # X and the one without CA left out
    kept = read_complex(release, "1aaa", keep_unknown=True)
    assert kept.sequence == "MXM"
    assert kept.structure.backbone.shape == (3, 4, 3)
    assert kept.structure.author_numbers == ("1", "2", "3")


def test_folders_without_index(tmp_path):
    for place in ("v2020-other-PL/1aaa", "refined-set/1bbb", "CASF-2016/coreset/1ccc"):
        write_complex(tmp_path / place, A="MKV")
    release = open_pdbbind(tmp_path)
    assert release.codes == {"train": ["1aaa"], "validation": ["1bbb"], "test": ["1ccc"]}
    with pytest.raises(FileNotFoundError, match="after registering"):
        open_pdbbind(tmp_path / "refined-set" / "1bbb")


def test_malformed_lines_are_numbered(tmp_path):
    file = tmp_path / "INDEX_general_PL.2020"
    file.write_text(
        "# comment\n\n"
        "1aaa  2.00  2001  Kd=700uM  // four fields\n"
        "1aab  high  2001  Kd=700uM\n"
        "1aac  2.00  2001\n"
        "1aad  2.00  12\n"
        "<html>\n"
        "1aaa  2.00  2001  Kd=7uM\n",
        encoding="utf-8",
    )
    bad = []
    records = read_index(file, bad)
    assert list(records) == ["1aaa"]
    assert (records["1aaa"].affinity, records["1aaa"].binding) == (None, "Kd=700uM")
    assert [record.id.split()[-1] for record in bad] == ["4", "5", "6", "7", "8"]
    assert [record.reason for record in bad] == [
        "resolution is 'high', neither a number nor NMR",
        "it has too few fields",
        "year is '12'",
        "'<html>' is not a PDB code",
        "1aaa stands in an earlier line too",
    ]


def test_name_and_core_lines(tmp_path):
    bad = []
    names = tmp_path / "names"
    names.write_bytes(b"1aaa  2001  P00001  5\x92-NUCLEOTIDASE OF E. COLI\n1aab  2001\n")
    assert read_name_index(names, bad)["1aaa"].name.endswith("OF E. COLI")
    core = tmp_path / "CoreSet.dat"
    core.write_text(CORE + "1ccd  1.90  2006   7.00  Ki=100nM  x\n1cce 1.90 2006 high Ki 2\n")
    assert read_core_set(core, bad)["1ccc"].target == "12"
    assert [record.id for record in bad] == [
        *("names line 2", "CoreSet.dat line 3", "CoreSet.dat line 4")
    ]


@pytest.fixture(scope="module")
def real():
    folder = SHARED / "pdbbind_layout" / "pdbbind"
    if not folder.is_dir():
        pytest.skip("the PDBbind layouts (../shared/data/pdbbind_layout) are not beside this clone")
    return folder


@pytest.mark.parametrize("version", ["2007", "2013", "2016"])
def test_real_layouts(real, version):
    release = open_pdbbind(real, version=version)
    assert release.invalid == []
    assert release.codes == {
        "train": ["1k9q", "1nlo"],
        "validation": ["1imx", "1nlp"],
        "test": ["10gs", "4yef"],
    }
    # 1nlo and 1nlp hold the same SH3 domain.
    assert select(release)[1].kept == {"train": 1, "validation": 2, "test": 2}


def test_real_complexes(real):
    release = open_pdbbind(real)
    release.codes = {"train": sorted(release.folders), "validation": [], "test": []}
    for choice in CHAIN_CHOICES:
        _, report = select(release, choice, "none")
        assert [record.id for record in report.invalid] == ["1ps3"]  # it has only a pocket
        assert report.kept["train"] == 13
    assert len(read_complex(release, "10gs").sequence) == 208
    assert read_complex(release, "10gs", "concat").structure.chain_ids[::208] == ("A", "B")
    assert set(read_complex(release, "1y6r", "pocket").structure.chain_ids) == {"A"}
