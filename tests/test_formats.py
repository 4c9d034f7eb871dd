"""Formats of alignments, read back by other packages and against snapshots."""

from __future__ import annotations

import csv
import io
import json
import pickle
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import Bio.Align
import Bio.AlignIO
import biotite.sequence.align
import biotite.sequence.io.fasta
import gemmi
import pandas
import pytest
import skbio
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import pipeline

import plasma_hf
from plasma_hf.models.alignment_result import (
    BLAST_TAB,
    FORMATS,
    LEGEND,
    MMSEQS,
    AlignmentResult,
    AlignmentResults,
    columns,
    format_of,
)
from plasma_hf.models.pipeline_protein_alignment import describe_segment
from plasma_hf.models.protein import Protein, Structure

# Between pairs: one residue of the query alone (S), then two beside one (GG, W), then two of the
# candidate alone (LL).
PAIRS = [(1, 0, 1.0), (2, 1, 0.95), (4, 2, 0.8), (5, 3, 0.9), (8, 5, 0.7), (9, 8, 0.55)]


def tiny_pair(pairs: list[tuple[int, int, float]] = PAIRS) -> AlignmentResult:
    segments = [describe_segment(pairs)] if pairs else []
    query, candidate = Protein("first", "MACSDEGGHK"), Protein("second|x", "ACDQWHLLRV")
    return AlignmentResult({"score": 0.5, "segments": segments}, query, candidate)


SNAPSHOT = """
query      first     10 residues
candidate  second|x  10 residues
score      0.5000

segment 1  query 2-10  candidate 1-9  score 0.5444  pairs 6  identity 0.667

query      2 ACSDEGGH--K 10
             || :|  :  .
candidate  1 AC-DQW-HLLR  9

"""


def test_text_is_as_it_was() -> None:
    assert tiny_pair().to_string() == LEGEND + SNAPSHOT == str(tiny_pair()) + "\n\n"


def test_text_numbers_blocks() -> None:
    sequence = "ACDEFGHIKLMNPQRSTVWY" * 7
    pairs = [(i, i + 3, 1.0) for i in range(3, 137)]
    proteins = Protein("a", sequence), Protein("b", "MMM" + sequence)
    text = AlignmentResult(
        {"score": 1.0, "segments": [describe_segment(pairs)]}, *proteins
    ).to_string()
    rows = [line.split() for line in text.splitlines() if line.startswith(("query ", "candidate "))]
    numbers = [(int(row[1]), int(row[3])) for row in rows[2:]]
    assert numbers == [(4, 63), (7, 66), (64, 123), (67, 126), (124, 137), (127, 140)]
    assert rows[2][2] == sequence[3:63] == rows[3][2]


def test_text_leaves_out_numbers_of_a_row_without_residues() -> None:
    pairs = [(0, 0, 1.0), (1, 200, 1.0)]
    proteins = Protein("a", "MK"), Protein("b", "M" * 199 + "LK")
    text = AlignmentResult(
        {"score": 1.0, "segments": [describe_segment(pairs)]}, *proteins
    ).to_string()
    assert f"query         {'-' * 60}\n" in text


def test_no_segment_is_one_plain_line() -> None:
    pair = tiny_pair([])
    assert pair.to_string().splitlines()[-1].startswith("no segment")
    [row] = read_tsv([pair])
    assert (row["query"], row["candidate"], row["score"]) == ("first", "second|x", "0.500000")
    assert not any(row[name] for name in list(row)[3:])


CERTAIN = {"bits": 85.23, "p_value": 3.14e-20}
COUNTED = CERTAIN | {"evalue": 3.14e-18}
UNKNOWN = {"bits": None, "p_value": None}


def significant(about: dict[str, Any], **others: Any) -> AlignmentResult:
    """Return a pair of which the result and its segment say the same of chance."""
    pair = tiny_pair()
    segments = [segment | about for segment in pair["segments"]]
    result = {**pair, "segments": segments} | about | others
    return AlignmentResult(result, pair.query, pair.candidate)


@pytest.mark.parametrize(("about", "chance"), [(CERTAIN, "p 3.1e-20"), (COUNTED, "E 3.1e-18")])
def test_text_says_how_likely_chance_is(about: dict[str, Any], chance: str) -> None:
    text = significant(about).to_string()
    assert f"score      0.5000  bits 85.2  {chance}\n" in text
    assert f"score 0.5444  bits 85.2  {chance}  pairs 6" in text
    assert "p < 1e-300\n" in significant(CERTAIN | {"p_value": 0.0}).to_string()


def test_text_says_why_there_is_no_segment() -> None:
    def last(about: dict[str, Any]) -> str:
        return significant(about, segments=[]).to_string().splitlines()[-1]

    assert last({"bits": 6.1, "p_value": 0.412}) == "no significant alignment (p 0.41)"
    assert last(COUNTED | {"evalue": 41.2}) == "no significant alignment (E 41)"
    # It is significant, and some option leaves too few pairs of it.
    assert last(COUNTED).startswith("no segment: no stretch")


def test_text_says_that_significance_is_unknown() -> None:
    for about in (UNKNOWN, UNKNOWN | {"evalue": None}):
        text = significant(about).to_string()
        assert "score      0.5000\nsignificance unknown: run plasma-hf calibrate\n" in text
        assert "bits" not in text


def test_tables_and_json_hold_what_is_known_of_chance() -> None:
    names = ("bits", "p_value", "evalue")
    for about, want in (
        (COUNTED, (85.23, 3.14e-20, 3.14e-18)),
        (CERTAIN, (85.23, 3.14e-20, None)),
        (UNKNOWN, (None, None, None)),
        ({}, (None, None, None)),  # of a head that reads plans
    ):
        pair = significant(about)
        [row] = read_tsv([pair])
        for prefix in ("", "segment_"):
            read = [row[prefix + name] for name in names]
            assert [float(value) if value else None for value in read] == list(want)
        result = json.loads(pair.to_string("json"))
        assert tuple(result[name] for name in names) == want
        assert tuple(result["segments"][0][name] for name in names) == want


def read_tsv(pairs: list[AlignmentResult]) -> list[dict[str, Any]]:
    text = AlignmentResults(pairs).to_string("tsv")
    return list(csv.DictReader(io.StringIO(text), delimiter="\t"))


def test_tsv_counts_from_one() -> None:
    [row] = read_tsv([tiny_pair()])
    assert "residue_pairs" not in row
    ranges = [name for name in row if name.endswith(("_start", "_end"))]
    assert [row[name] for name in ranges] == ["2", "10", "1", "9"]
    assert (row["segment"], row["pairs"], row["identity"]) == ("1", "6", "0.6667")
    asked = tiny_pair().to_string("tsv", ["residue_pairs", "cigar"]).splitlines()
    assert asked[0] == "residue_pairs\tcigar"
    spelled = [pair.split(":") for pair in asked[1].split("\t")[0].split(",")]
    assert [(int(i) - 1, int(j) - 1, float(w)) for i, j, w in spelled] == PAIRS


def test_tsv_survives_odd_ids() -> None:
    pair = tiny_pair()
    odd = AlignmentResult(pair, Protein('a\t"b"', pair.query.sequence), pair.candidate)
    [row] = read_tsv([odd])
    assert row["query"] == 'a\t"b"'
    assert odd.to_string("m8").split("\t")[0] == 'a_"b"'


def test_json_keeps_the_result() -> None:
    pair = tiny_pair()
    pair["plan"] = torch.zeros(10, 10)
    line = pair.to_string("json")
    assert line.count("\n") == 1
    read = json.loads(line)
    assert (read["query"], read["candidate_length"]) == ("first", 10)
    segment = pair["segments"][0]
    unknown = {"bits": None, "p_value": None, "evalue": None}
    assert read["segments"] == [{**segment, **unknown}]
    assert "plan" not in read


steps = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=20)


@given(steps)
def test_columns_hold_every_residue_once_and_in_order(steps: list[tuple[int, int]]) -> None:
    pairs, i, j = [], 0, 0
    for down, across in steps:
        i, j = i + down, j + across
        pairs.append((i, j, 0.75))
    laid_out = list(columns(pairs))
    assert [c for c in laid_out if c[2] is not None] == pairs
    for side in (0, 1):
        indices = [c[side] for c in laid_out if c[side] is not None]
        assert indices == list(range(pairs[0][side], pairs[-1][side] + 1))
    assert all(c[0] is not None or c[1] is not None for c in laid_out)


def test_pair_says_what_cannot_be_written() -> None:
    good, bare = Protein("good", "MKV"), Protein("bare", embeddings=torch.zeros(3, 2))
    result = AlignmentResult({"score": 0.1, "segments": []}, good, bare)
    assert str(result) == "{'score': 0.1, 'segments': []}"
    with pytest.raises(ValueError, match="'bare' has residue embeddings and no sequence"):
        result.to_string()
    with pytest.raises(ValueError, match="no alignment: candidate is empty"):
        AlignmentResult({"error": "candidate is empty"}, good, good).to_string("m8")
    with pytest.raises(ValueError, match="no format 'xml'; give one of text, tsv, json, m8"):
        tiny_pair().to_string("xml")
    with pytest.raises(ValueError, match="no column wrong; give some of"):
        tiny_pair().to_string("m8", ["query", "wrong"])
    with pytest.raises(ValueError, match="format a3m has no columns; give m8 or tsv"):
        tiny_pair().to_string("a3m", ["query"])


# --- Real results, of proteins with several hits, insertions, odd letters and lower case.


@pytest.fixture(scope="module")
def real() -> AlignmentResults:
    rng = random.Random(0)

    def protein(residues: int) -> str:
        return "".join(rng.choices("ACDEFGHIKLMNPQRSTVWYUOX", k=residues))

    def changed(sequence: str) -> str:
        """Exchange letters, leave some out, put some in, and write some small."""
        out = ""
        for letter in sequence:
            chance = rng.random()
            out += protein(1) if chance < 0.1 else letter.lower() if chance < 0.3 else letter
            out += protein(rng.randint(1, 4)) if chance > 0.96 else ""
        cut = rng.randrange(10, len(out) - 20)
        return out[:cut] + out[cut + rng.randint(0, 6) :]

    pairs = []
    for number in range(25):
        one, other = protein(rng.randint(60, 120)), protein(rng.randint(50, 90))
        twice = changed(one) + protein(40) + changed(one)
        swapped = changed(other) + changed(one)
        query = {"id": f"q{number}", "sequence": one + other}
        pairs.append((query, {"id": f"c{number}", "sequence": twice if number % 3 else swapped}))
    align = pipeline("protein-alignment")
    results = align(pairs, batch_size=8, database_size=1000)
    assert max(len(result["segments"]) for result in results) > 1
    return results


def pairs_of(rows: tuple[str, str], query: int, candidate: int) -> list[tuple[int, int]]:
    """Read pairs from rows with gaps, whose first residues are these."""
    found = []
    for one, other in zip(*rows, strict=True):
        found += [(query, candidate)] if one != "-" != other else []
        query, candidate = query + (one != "-"), candidate + (other != "-")
    return found


def true_pairs(results: AlignmentResults) -> list[list[tuple[int, int]]]:
    return [[(i, j) for i, j, _ in hit.pairs] for result in results for hit in result.hits]


def places(name: str) -> int:
    """Return the first residue of `id/first-last`, from 0."""
    return int(name.rpartition("/")[2].split("-")[0]) - 1


def blocks(found: list[Any]) -> list[list[tuple[int, int]]]:
    """Read pairs from alignments of Biopython."""
    return [
        pairs_of((str(a[0].seq), str(a[1].seq)), places(a[0].id), places(a[1].id)) for a in found
    ]


def test_fasta_is_read_back(real: AlignmentResults, tmp_path: Path) -> None:
    text = real.to_string("fasta")
    records = list(skbio.io.read(io.StringIO(text), format="fasta"))
    sides = list(zip(records[::2], records[1::2], strict=True))
    by_skbio = [
        pairs_of((str(a), str(b)), places(a.metadata["id"]), places(b.metadata["id"]))
        for a, b in sides
    ]
    lines = text.splitlines()
    by_biotite = []
    for start in range(0, len(lines), 4):
        file = biotite.sequence.io.fasta.FastaFile.read(
            io.StringIO("\n".join(lines[start : start + 4]))
        )
        names = [head.split()[0] for head in file]
        # Its alphabet has no U, O: what matters here is where the gaps are.
        rows = {h: s.replace("U", "C").replace("O", "K") for h, s in file.items()}
        alignment = biotite.sequence.io.fasta.get_alignment(rows)
        trace = alignment.trace[(alignment.trace != -1).all(axis=1)]
        by_biotite.append([(i + places(names[0]), j + places(names[1])) for i, j in trace.tolist()])
    assert by_skbio == by_biotite == true_pairs(real)


def test_stockholm_is_read_back(real: AlignmentResults) -> None:
    text = real.to_string("stockholm")
    assert blocks(list(Bio.AlignIO.parse(io.StringIO(text), "stockholm"))) == true_pairs(real)
    first = text.partition("//\n")[0] + "//\n"
    table = skbio.TabularMSA.read(io.StringIO(first), format="stockholm", constructor=Letters)
    assert [pairs_of(tuple(map(str, table)), *map(places, table.index))] == true_pairs(real)[:1]
    [again] = [
        a.letter_annotations["posterior_probability"]
        for a in next(Bio.AlignIO.parse(io.StringIO(text), "stockholm"))
        if a.letter_annotations
    ]
    weights = [w for *_, w in real[0].hits[0].columns]
    assert all((p == ".") == (w is None) for p, w in zip(again, weights, strict=True))


class Letters(skbio.Protein):  # with every letter that a protein may hold here
    pass


def test_clustal_is_read_back(real: AlignmentResults) -> None:
    text = real.to_string("clustal")
    assert blocks(list(Bio.AlignIO.parse(io.StringIO(text), "clustal"))) == true_pairs(real)
    first = "CLUSTAL" + text.split("CLUSTAL")[1]
    table = skbio.TabularMSA.read(io.StringIO(first), format="clustal", constructor=Letters)
    assert [pairs_of(tuple(map(str, table)), *map(places, table.index))] == true_pairs(real)[:1]


def test_a3m_is_read_back(real: AlignmentResults) -> None:
    found = []
    for result in real:
        head, *rest = result.to_string("a3m").split(">")[1:]
        assert head == f"{result.query.id}\n{result.query.sequence}\n"
        for record in rest:
            name, row = record.splitlines()
            assert sum(not letter.islower() for letter in row) == len(result.query)
            i, j, pairs = 0, places(name.split()[0]), []
            for letter in row:
                if letter != "-" and not letter.islower():
                    pairs.append((i, j))
                i, j = i + (not letter.islower()), j + (letter != "-")
            found.append(pairs)
            letters = row.replace("-", "").upper()
            start = places(name.split()[0])
            assert result.candidate.sequence[start : start + len(letters)] == letters
    assert found == true_pairs(real)
    # One query stands once for all its candidates, and biotite reads that.
    query = real[0].query.sequence
    align = pipeline("protein-alignment")
    text = align([(query, query[10:70]), (query, query[5:50])]).to_string("a3m")
    assert text.count(">query\n") == 1 and text.count(">candidate/1-") == 2
    assert len(biotite.sequence.io.fasta.FastaFile.read(io.StringIO(text))) == 3


def test_m8_is_what_a_naive_count_gives(real: AlignmentResults) -> None:
    lines = [line.split("\t") for line in real.to_string("m8").splitlines()]
    hits = [hit for result in real for hit in result.hits]
    assert len(lines) == len(hits) > 25 and {len(line) for line in lines} == {12}
    for line, hit in zip(lines, hits, strict=True):
        query, candidate = hit.result.query, hit.result.candidate
        pairs = [(i, j) for i, j, _ in hit.pairs]
        identical = sum(query.sequence[i] == candidate.sequence[j] for i, j in pairs)
        gaps, length = 0, 1
        for (i, j), (k, m) in zip(pairs, pairs[1:], strict=False):
            gaps += (k - i > 1) + (m - j > 1)
            length += k - i + m - j - 1
        assert line[:2] == [query.id, candidate.id]
        assert float(line[2]) == pytest.approx(100 * identical / length, abs=1e-3)
        numbers = (length, len(pairs) - identical, gaps)
        ends = (pairs[0][0] + 1, pairs[-1][0] + 1, pairs[0][1] + 1, pairs[-1][1] + 1)
        assert [int(one) for one in line[3:10]] == [*numbers, *ends]
        assert float(line[10]) == pytest.approx(hit.segment["p_value"] * 1000, rel=1e-3)
        assert float(line[11]) == pytest.approx(hit.segment["bits"], abs=0.05)
    assert BLAST_TAB[:3] == ("query", "target", "pident")
    read = skbio.io.read(
        io.StringIO(real.to_string("m8")),
        format="blast+6",
        into=pandas.DataFrame,
        default_columns=True,
    )
    assert read["qstart"].tolist() == [float(line[6]) for line in lines]


def test_columns_are_those_of_mmseqs(real: AlignmentResults) -> None:
    taken = (
        "query,target,evalue,gapopen,pident,fident,nident,qstart,qend,qlen,tstart,tend,tlen,alnlen,"
        "raw,bits,cigar,qseq,tseq,qheader,theader,qaln,taln,qframe,tframe,mismatch,qcov,tcov,qset,"
        "qsetid,tset,tsetid,taxid,taxname,taxlineage,qorfstart,qorfend,torfstart,torfend,ppos"
    ).split(",")
    assert set(taken) <= set(MMSEQS)
    for line in real.to_string("m8", taken).splitlines():
        row = dict(zip(taken, line.split("\t"), strict=True))
        counted: Counter[str] = Counter()
        number = ""
        for one in row["cigar"]:
            counted[one] += 0 if one.isdigit() else int(number)
            number = number + one if one.isdigit() else ""
        assert sum(counted.values()) == len(row["qaln"]) == int(row["alnlen"])
        assert counted["M"] == int(row["nident"]) + int(row["mismatch"])
        assert (
            row["qaln"].replace("-", "") == row["qseq"][int(row["qstart"]) - 1 : int(row["qend"])]
        )
        assert (
            row["taln"].replace("-", "") == row["tseq"][int(row["tstart"]) - 1 : int(row["tend"])]
        )
        assert counted["I"] == row["taln"].count("-") and counted["D"] == row["qaln"].count("-")
        assert float(row["qcov"]) == pytest.approx(
            (int(row["qend"]) - int(row["qstart"]) + 1) / int(row["qlen"]), abs=1e-3
        )


def test_biopython_has_the_pairs(real: AlignmentResults) -> None:
    for result in real:
        for hit, found in zip(result.hits, result.to_biopython(), strict=True):
            pairs = [
                (i, j)
                for (i, end), (j, _) in zip(*found.aligned.tolist(), strict=True)
                for i, j in zip(range(i, end), range(j, j + end - i), strict=True)
            ]
            assert pairs == [(i, j) for i, j, _ in hit.pairs]
            assert (found[0], found[1]) == hit.rows
            assert found.annotations["evalue"] == hit.segment["evalue"]


def test_a_table_of_all(real: AlignmentResults) -> None:
    table = real.to_pandas()
    assert len(table) == sum(max(1, len(result["segments"])) for result in real)
    assert table["pairs"].sum() == sum(len(hit.pairs) for r in real for hit in r.hits)
    one = real[0].to_pandas()
    named = replace(real[0].query, id="1E10"), replace(real[0].candidate, id="NA")
    again = AlignmentResult(dict(real[0]), *named).to_pandas()
    assert (again["query"][0], again["candidate"][0]) == ("1E10", "NA")
    assert one["segment"].tolist() == [hit.number for hit in real[0].hits]
    assert "<table>" in real._repr_html_()


def test_a_result_is_a_dict_and_travels(real: AlignmentResults) -> None:
    result = real[0]
    assert isinstance(result, dict) and json.loads(json.dumps(result)) == dict(result)
    again = pickle.loads(pickle.dumps(result))
    assert again == result and again.to_string("m8") == result.to_string("m8")
    assert str(again) == str(result)


@pytest.mark.parametrize(
    ("package", "use"),
    [("pandas", "to_pandas"), ("Bio.Align", "to_biopython"), ("matplotlib.figure", "plot")],
)
def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, package: str, use: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match="pip install"):
        getattr(tiny_pair(), use)()


def test_endings_tell_formats() -> None:
    endings = (".m8", ".TSV.gz", ".sto", ".aln", "", ".txt.gz")
    assert [format_of(f"x{end}") for end in endings] == [
        *("m8", "tsv", "stockholm", "clustal", "text", "text")
    ]
    with pytest.raises(ValueError, match="x.csv is of no known format.* end in .txt, .tsv"):
        format_of("x.csv")
    assert {name for name, form in FORMATS.items() if not form.endings} == set()


# --- Structures: the numbers of their authors.


@pytest.fixture(scope="module")
def proteases() -> AlignmentResult:
    align = pipeline("protein-alignment")
    return align(("demo/structures/2cga_B.pdb.gz", "demo/structures/1ppe_E.pdb.gz"))


def test_authors_numbers_are_in_text_tables_and_json(proteases: AlignmentResult) -> None:
    [segment] = proteases["segments"]
    matched = dict(zip(segment["query_residues"], segment["candidate_residues"], strict=True))
    assert {matched[f"B:{n}"] for n in (57, 102, 195)} == {"E:57", "E:102", "E:195"}
    text = str(proteases)
    assert "query 16-245 (B:16-B:245)" in text and "candidate 1-223 (E:16-E:245)" in text
    [row] = read_tsv([proteases])
    assert (row["query_residues"], row["candidate_residues"]) == ("B:16-B:245", "E:16-E:245")
    assert json.loads(proteases.to_string("json"))["segments"][0]["query_residues"][0] == "B:16"


def test_selections(proteases: AlignmentResult) -> None:
    pymol = proteases.selection("candidate")
    assert pymol.startswith("chain E and resi 16-34+37") and "221A" in pymol
    chimerax = proteases.selection("candidate", "chimerax")
    assert chimerax.startswith("/E:16-34,37")
    with pytest.raises(ValueError, match="no selection of 'both' for 'pymol'; give one of query"):
        proteases.selection("both")


def test_the_page_of_a_notebook(proteases: AlignmentResult) -> None:
    page = proteases._repr_html_()
    assert "<svg role=" in page and "aria-label=" in page and "B:16-B:245" in page
    assert (
        "no significant alignment"
        in pipeline("protein-alignment")(("MKVLAA", "WWWPPP"))._repr_html_()
    )
    assert plasma_hf.__version__


def selected(text: str) -> set[tuple[str, str]]:
    """Read a selection of PyMOL, in the words that are written here, as chain and number."""
    found = set()
    for part in text.replace("(", "").replace(")", "").split(" or "):
        words = part.split()
        assert words[:1] + words[2:4] == ["chain", "and", "resi"], text
        for one in words[4].replace("\\-", "~").split("+"):
            first, _, last = one.partition("-")
            ends = [int(end.replace("~", "-")) for end in (first, last)] if last else []
            numbers = [str(n) for n in range(ends[0], ends[1] + 1)] if last else [first]
            found |= {(words[1], number.replace("~", "-")) for number in numbers}
    return found


def test_selections_are_the_residues_that_are_aligned(proteases: AlignmentResult) -> None:
    for side, place in (("query", 0), ("candidate", 1)):
        want = {
            tuple(proteases.residues(side)[pair[place]].split(":"))
            for hit in proteases.hits
            for pair in hit.pairs
        }
        assert selected(proteases.selection(side)) == want
        # ... and gemmi finds each of them once in the file.
        [model] = gemmi.read_structure(getattr(proteases, side).source.rpartition(":")[0])
        there = [(chain.name, str(r.seqid)) for chain in model for r in chain]
        assert all(there.count(one) == 1 for one in want)


def test_selections_of_odd_numbers() -> None:
    numbers = ("-2", "-1", "0", "1", "2", "2A", "3", "5", "6", "4")
    chains = ("A",) * 7 + ("B",) * 3
    backbone = torch.zeros(10, 4, 3)
    odd = Protein("odd", structure=Structure("odd", "ACDEFGHIKL", backbone, numbers, chains))
    pairs = [(i, i, 0.9) for i in range(10)]
    result = AlignmentResult({"score": 1.0, "segments": [describe_segment(pairs)]}, odd, odd)
    assert result.selection() == (
        "(chain A and resi \\-2+\\-1+0-2+2A+3) or (chain B and resi 5-6+4)"
    )
    assert selected(result.selection()) == set(zip(chains, numbers, strict=True))
    assert result.selection(program="chimerax") == "/A:-2,-1,0-2,2A,3 /B:5-6,4"
    assert result.hits[0].authors("query") == "A:-2-B:4"
    nothing = AlignmentResult({"score": 0.0, "segments": []}, odd, odd)
    assert (nothing.selection(), nothing.selection(program="chimerax")) == ("none", "")
