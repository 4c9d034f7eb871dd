"""The pipeline: every kind of input, batches, and one clear error for each kind of bad input."""

import gzip
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import pipeline

from plasma_hf import PlasmaConfig, PlasmaModel, SubstitutionConfig
from plasma_hf.data import EmbeddingStore
from plasma_hf.hub import upstream
from plasma_hf.kernels import use_kernels
from plasma_hf.models import modeling_plasma, pipeline_protein_alignment, processing_plasma
from plasma_hf.models import protein as protein_module
from plasma_hf.models.local_alignment import AVERAGING, aligned_probabilities
from plasma_hf.models.modeling_backbone import Backbone
from plasma_hf.models.pipeline_protein_alignment import find_segments
from plasma_hf.models.protein import Protein, read_protein, read_records
from tests.helpers.structures import FULL, write_structure

QUERY = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQ"
CANDIDATE = "AYIAKQRQLSFVKSHFSRQLEERLGMIEVQ"
PAIR = (QUERY, CANDIDATE)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "one.fasta").write_text(f">first some words\n{QUERY[:30]}\n{QUERY[30:]}\n")
    (folder / "two.fa").write_text(f">a\n{QUERY}\n>b\n{CANDIDATE}\n")
    (folder / "empty.fasta").write_text(">nothing\n")
    (folder / "noheader.fasta").write_text("MKV\n")
    (folder / "blank.fasta").write_text("")
    (folder / "rubbish.pdb").write_text("no atoms here\n")
    (folder / "notes.txt").write_text("MKV")
    with gzip.open(folder / "packed.fasta.gz", "wt") as file:
        file.write(f">packed\n{QUERY}\n")
    whole = [(name, FULL) for name in ("ALA", "GLY", "MSE", "HIS", "LYS")]
    chains = {"A": whole, "B": [("SER", FULL)] * 4}
    write_structure(folder / "two.pdb", chains)
    write_structure(folder / "one.cif", {"A": chains["A"]})
    write_structure(folder / "trace.pdb", {"A": [("ALA", ("CA",))] * 5})
    mixed = {"A": [("ALA", ("CA",))] * 5, "B": chains["B"]}
    write_structure(folder / "mixed.pdb", mixed)
    return folder


def equal(first, second):
    assert first["segments"] == second["segments"] or all(
        a["pairs"][0][:2] == b["pairs"][0][:2]
        for a, b in zip(first["segments"], second["segments"], strict=True)
    )
    assert abs(first["score"] - second["score"]) < 1e-5
    return True


@pytest.mark.slow
def test_every_container_gives_the_same(align):
    alone = align(PAIR)
    named = {"query": QUERY, "candidate": CANDIDATE}
    assert alone["score"] > 0.25 and alone["segments"][0]["query_start"] == 3
    assert equal(align(named), alone)
    for inputs in ([PAIR], [named], [list(PAIR)]):
        [result] = align(inputs)
        assert equal(result, alone)
    rows = Dataset.from_list([named] * 3)
    assert len(align(rows)) == 3 and equal(align(rows)[2], alone)
    assert equal(next(iter(align(rows.to_iterable_dataset()))), alone)
    assert align([]) == [] and list(align(iter([]))) == []


def test_a_generator_streams(align):
    taken = []

    def pairs():
        for i in range(100):
            taken.append(i)
            yield PAIR

    results = align(pairs())
    next(results)
    assert len(taken) <= 2  # transformers peeks at one


def test_batch_size_changes_nothing(align):
    pairs = [(QUERY[: 5 + i], CANDIDATE[: 30 - i]) for i in range(20)] + [PAIR, PAIR[::-1]]
    one, many = align(pairs, batch_size=1), align(pairs, batch_size=16, return_plan=True)
    for a, b, (query, candidate) in zip(one, many, pairs, strict=True):
        assert equal(a, b)
        assert b["plan"].shape == (len(query), len(candidate))


def test_paths_and_embeddings(align, files):
    expected = align(PAIR)
    assert equal(align((files / "one.fasta", str(files / "two.fa") + ":b")), expected)
    assert equal(align((str(files / "packed.fasta.gz"), CANDIDATE)), expected)
    encoded = align.processor(query=QUERY, candidate=CANDIDATE)
    ready = [
        align.model.backbone(encoded[f"{s}_input_ids"]).last_hidden_state[0].detach()
        for s in ("query", "candidate")
    ]
    assert equal(align(tuple(ready)), expected)
    assert equal(align((ready[0].numpy(), CANDIDATE)), expected)
    assert equal(align((ready[0].tolist(), ready[1].double())), expected)


def test_structures(align, files):
    assert [p.sequence for p in read_records(files / "two.pdb")] == ["AGMHK", "SSSS"]
    assert read_protein(files / "one.cif").sequence == "AGMHK"
    [segment] = align((f"{files / 'two.pdb'}:A", "AGMHK"), evalue=1e9)["segments"]
    assert segment["query_end"] == 5
    assert read_protein(f"{files / 'mixed.pdb'}:B").sequence == "SSSS"


def test_options(align):
    assert "plan" not in align(PAIR) and align(PAIR, return_plan=True)["plan"].shape == (56, 30)
    assert align(PAIR, threshold=1.0)["segments"] == []
    assert align(PAIR, min_pairs=1000)["segments"] == []
    assert equal(align((QUERY.lower(), f" {CANDIDATE}*\n")), align(PAIR))


BAD = {
    "empty": (("", CANDIDATE), "query is empty; give at least one residue"),
    "white": ((QUERY, "  \n"), "candidate is empty"),
    "character": (("MK1V", "MKV"), r"query has the character '1' at position 3, which is no"),
    "gap": (("MK-V", "MKV"), "Remove gaps"),
    "not latin": (("MKß", "MKV"), "character 'ß' at position 3"),
    "no file": (("no/such.fasta", "MKV"), r"there is no file 'no/such.fasta'; check the path"),
    "ending": (("{}/notes.txt", "MKV"), "notes.txt is not .* nor begins with '>' as FASTA"),
    "no ending": (("{}/notes", "MKV"), "there is no file '.*notes'"),
    "several": (("{}/two.fa", "MKV"), r"holds 2 records: a, b; name one, as in '.*two.fa:a'"),
    "no record": (("{}/two.fa:z", "MKV"), r"has no record 'z'; it has: a, b"),
    "no header": (("{}/noheader.fasta", "MKV"), "noheader.fasta is not .* nor begins with '>'"),
    "blank": (("{}/blank.fasta", "MKV"), "blank.fasta is not .* nor begins with '>'"),
    "empty record": (("{}/empty.fasta", "MKV"), "query 'nothing' is empty"),
    "structure": (("{}/rubbish.pdb", "MKV"), "rubbish.pdb (is not a valid|holds no protein)"),
    "several chains": (("{}/two.pdb", "MKV"), r"holds 2 chains: A, B; name one"),
    "no chain": (("{}/two.pdb:C", "MKV"), r"has no chain 'C'; it has: A, B"),
    "no backbone": (("{}/trace.pdb", "MKV"), r"no residue with the backbone atoms N, CA, C"),
    "width": ((torch.ones(5, 7), "MKV"), "width 7, this model takes 420; use the backbone the"),
    "flat": ((torch.ones(5), "MKV"), r"shape \(5,\); residue embeddings are floating point"),
    "whole numbers": ((np.ones((5, 420), int), "MKV"), "residue embeddings are floating point"),
    "no residues": ((torch.ones(0, 420), "MKV"), "at least one residue"),
    "nan": ((torch.full((3, 420), torch.nan), "MKV"), "NaN or infinite"),
    "large": ((torch.full((3, 420), 1e20), "MKV"), r"query has NaN or infinite .* beyond 1e\+12"),
    "ragged": (([[1.0, 2.0], [1.0]], "MKV"), "is not a table of numbers"),
    "kind": ((5, "MKV"), "query is a int; give a sequence, a path"),
    "protein": ((Protein("p", "MK1"), "MKV"), "character '1'"),
    "three": (("A", "B", "C"), "a pair is a tuple of 3"),
    "key": ({"query": "MKV", "target": "MKV"}, r"has no candidate, only \['query', 'target'\]"),
    "one protein": ("MKV", "cannot align a str, and an alignment needs two proteins: give a pair"),
    "number": (7, "cannot align a int"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_has_its_own_message(align, files, case):
    pair, message = BAD[case]
    if isinstance(pair, tuple):
        pair = tuple(v.format(files) if isinstance(v, str) else v for v in pair)
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        align(pair)
    if isinstance(pair, str | int):
        return
    good, bad, last = align([PAIR, pair, PAIR], on_error="report", batch_size=4)
    assert equal(good, last) and list(bad) == ["error"]


def test_two_arguments_and_unknown_options(align):
    with pytest.raises(TypeError, match="give a pair as one argument"):
        align(QUERY, CANDIDATE)
    with pytest.raises(ValueError, match="on_error='ignore'; accepted are"):
        align(PAIR, on_error="ignore")
    with pytest.raises(TypeError, match="nonsense"):
        align(PAIR, nonsense=1)


def test_numbers_that_cannot_be(align):
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size={size}; give 1 or more"):
            align([PAIR], batch_size=size)
    bad = [("min_pairs", 0), ("max_gap", -1), ("threshold", float("nan")), ("evalue", "x")]
    bad += [("evalue", -1), ("database_size", 0), ("max_hits", 0)]
    for name, value in bad:
        with pytest.raises(ValueError, match=f"{name}={value!r}.*; give"):
            align(PAIR, **{name: value})


def test_a_pair_that_does_not_fit_keeps_no_other_from_its_answer(align, monkeypatch):
    monkeypatch.setattr(modeling_plasma, "FEW_CELLS", 10_000)
    monkeypatch.setattr(modeling_plasma, "free_memory", lambda: 1e5)
    long = ("MKTAYIAKQR" * 40, "AYIAKQRQLS" * 40)
    good, bad, last = align([PAIR, long, PAIR], on_error="report", batch_size=4)
    assert equal(good, last)
    assert "1 pairs, up to 400 and 400 residues, take 0.0 GB" in bad["error"]


FORK = """
import os, sys, torch
from torch.utils.data import DataLoader
from transformers import pipeline
import plasma_hf

torch.set_num_threads(2)
pair = ("MKTAYIAKQRQISFVKSHFSRQ" * 4, "AYIAKQRQLSFVKSHFS" * 4)

class Scores:
    align = None
    def __len__(self):
        return 2
    def __getitem__(self, number):
        align = Scores.align or pipeline("protein-alignment")
        return align(pair)["score"]

if __name__ == "__main__":
    align = Scores.align = pipeline("protein-alignment")
    large = torch.randn(900, 900)
    expected, _ = align(pair)["score"], large @ large
    for _ in range(2):
        if not (child := os.fork()):  # it has one thread, by which a product's last bit may change
            same = abs(align(pair)["score"] - expected) < 1e-6 and (large @ large).isfinite().all()
            os._exit(0 if same and torch.get_num_threads() == 1 else 3)
        assert os.waitpid(child, 0)[1] == 0
    for way in ("fork", "spawn"):
        found = list(DataLoader(Scores(), num_workers=1, multiprocessing_context=way))
        assert all(abs(float(score) - expected) < 1e-6 for score in found), (way, found)
    print("answered")
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_forked_after_an_alignment_answers(tmp_path):
    script = tmp_path / "fork.py"
    script.write_text(FORK)
    command = [sys.executable, "-W", "ignore", str(script)]
    places = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | places
    )
    assert done.stdout == "answered\n", done.stderr


def test_a_head_alone_takes_embeddings():
    head = PlasmaModel(PlasmaConfig(embedding_size=8, head="hinge"))
    pipe = pipeline("protein-alignment", model=head)
    assert pipe((torch.eye(12, 8), torch.eye(12, 8)))["score"] >= 0
    with pytest.raises(ValueError, match=r"head without a backbone .*\(residues, 8\)"):
        pipe(PAIR)


def make_store(folder, backbone, sequences):
    store = EmbeddingStore.create(folder, backbone)
    store.add([(f"p{i}", sequence) for i, sequence in enumerate(sequences)], backbone)
    return EmbeddingStore.open(folder)


def test_stored_proteins_are_not_embedded_again(align, tmp_path, monkeypatch):
    backbone = Backbone(align.model.backbone, align.processor, "substitution")
    pair = ("MKTAYIAKQRQISFVKSHFSRQ", "AYIAKQRQLSFVKSHFS")
    stored = pipeline("protein-alignment", store=make_store(tmp_path, backbone, pair))
    expected = align(pair)
    assert stored(pair) == expected
    assert stored((pair[0], "MKTAYIAKQRQ")) == align((pair[0], "MKTAYIAKQRQ"))
    assert stored((pair[0].lower(), pair[1])) == expected

    def refuse(*_, **__):
        raise AssertionError("a stored protein was embedded")

    monkeypatch.setattr(Backbone, "embed", refuse)
    assert stored(pair) == expected
    with pytest.raises(AssertionError):
        stored((pair[0], "MKTAYIAKQRQ"))


def test_a_store_of_another_model_is_refused(tiny_esm, tmp_path):
    model, processor = tiny_esm
    store = make_store(tmp_path, Backbone(model.backbone, processor, "esm"), ["MKV"])
    with pytest.raises(ValueError, match=r"embeddings of esm \(generic\).*those of substitution"):
        pipeline("protein-alignment", store=store)
    other = PlasmaModel(model.config)
    with pytest.raises(ValueError, match="made by esm with other weights"):
        pipeline("protein-alignment", model=other, processor=processor, store=store)
    head = PlasmaModel(PlasmaConfig(embedding_size=16, head_size=8))
    assert pipeline("protein-alignment", model=head, store=store)(("MKV", "MKV"))["score"] >= 0


@pytest.fixture
def work(align, monkeypatch):
    """Count backbone rows, and how often each sequence is cleaned."""
    counts = {"rows": 0, "cleaned": Counter()}
    clean = protein_module.clean_sequence

    def counting(sequence, *name):
        counts["cleaned"][sequence] += 1
        return clean(sequence, *name)

    for module in (protein_module, processing_plasma):
        monkeypatch.setattr(module, "clean_sequence", counting)

    def count_rows(_, args, kwargs):
        counts["rows"] += len(kwargs["input_ids"])

    hook = align.model.backbone.register_forward_pre_hook(count_rows, with_kwargs=True)
    yield counts
    hook.remove()


def one_query(count=50):
    return [(QUERY, CANDIDATE[: 5 + i % 25] + "ACDEFGHIKL"[i // 25 :]) for i in range(count)]


@pytest.mark.parametrize("batch_size", [1, 7, 50])
@pytest.mark.parametrize("container", [list, iter])
def test_a_protein_is_cleaned_and_embedded_once_in_a_call(align, work, container, batch_size):
    results = list(align(container(one_query()), batch_size=batch_size))
    assert len(results) == 50 and all(result["score"] >= 0 for result in results)
    assert work["rows"] == 51
    assert len(work["cleaned"]) == 51 and set(work["cleaned"].values()) == {1}


def test_both_sides_are_embedded_together(align, work):
    [result] = align([(QUERY, CANDIDATE), (CANDIDATE, QUERY)], batch_size=2)[:1]
    assert work["rows"] == 2 and set(work["cleaned"].values()) == {1}
    assert equal(result, align(PAIR))


def test_a_given_protein_is_cleaned_once_and_a_read_one_not_at_all(align, work):
    given, read = Protein("p", QUERY.lower()), read_protein(CANDIDATE)
    work["cleaned"].clear()
    assert equal(align([(given, read), (given, read)])[1], align(PAIR))
    assert work["cleaned"] == {QUERY.lower(): 1, QUERY: 1, CANDIDATE: 1}


def test_a_file_is_read_once_in_a_call(align, files, monkeypatch):
    read = []
    of_file = protein_module.read_records
    monkeypatch.setattr(protein_module, "read_records", lambda *a: read.append(a) or of_file(*a))
    results = align([(files / "one.fasta", CANDIDATE[:n]) for n in range(20, 30)])
    assert len(results) == 10 and len(read) == 1


def test_a_generator_needs_no_memory_without_end(align, monkeypatch):
    expected = align(one_query())
    kept = []
    monkeypatch.setattr(pipeline_protein_alignment, "KEPT_BYTES", 200_000)
    monkeypatch.setattr(pipeline_protein_alignment, "KEPT_PROTEINS", 3)
    forget = pipeline_protein_alignment._Seen.forget

    def look(seen):
        forget(seen)
        size = sum(rows.nbytes for rows in seen.embeddings.values())
        kept.append((size, len(seen.proteins), next(reversed(seen.embeddings))))

    monkeypatch.setattr(pipeline_protein_alignment._Seen, "forget", look)
    results = list(align(iter(one_query())))
    assert all(map(equal, results, expected))
    assert len(kept) == 50
    assert max(size for size, *_ in kept) <= 200_000 and max(n for _, n, _ in kept) == 3


def test_one_pair_takes_few_calls(align):
    pair = ("MKTAYIAKQRQISFVKSHFSRQ", "AYIAKQRQLSFVKSHFS")
    align(pair), align(pair)  # what is made at the first call is there then
    package = str(Path(protein_module.__file__).parents[1])
    calls = Counter()

    def count(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(package):
            calls[frame.f_code.co_filename.removeprefix(package)] += 1

    sys.setprofile(count)
    try:
        align(pair)
    finally:
        sys.setprofile(None)
    assert 0 < sum(calls.values()) <= 600, calls


def test_segments_of_a_constructed_plan():
    plan = torch.zeros(12, 12)
    for i in range(4):  # two swapped blocks, one residue left out in the second
        plan[i, 8 + i] = 0.9
        plan[6 + i + (i > 1), i] = 0.8
    first, second = find_segments(plan)
    places = "query_start", "query_end", "candidate_start", "candidate_end"
    assert [first[place] for place in places] == [0, 4, 8, 12]
    assert [second[place] for place in places] == [6, 11, 0, 4]
    assert abs(first["score"] - 0.9) < 1e-6 and abs(second["score"] - 0.8 * 4 / 5) < 1e-6
    assert find_segments(plan, max_gap=0, min_pairs=3) == [first]
    assert find_segments(plan, threshold=0.95) == []


DOMAIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
OTHER = (
    "MVLSEGEWQLVLHVWAKVEADVAGHGQDILIRLFKSHPETLEKFDRFKHLKTEAEMKASEDLKKHGVTVLTALGAILKKKGHHEA"
    "ELKPLAQSHATKHKIPIKYLEFISEAIIHVLHSRHPGDFGADAQGAMNKALELFRKDIAAKYKELGYQG"
)


COMPOSITION = {  # percent of the residues in Swiss-Prot
    **{"A": 8.3, "R": 5.5, "N": 4.1, "D": 5.5, "C": 1.4, "Q": 3.9, "E": 6.7, "G": 7.1, "H": 2.3},
    **{"I": 5.9, "L": 9.7, "K": 5.8, "M": 2.4, "F": 3.9, "P": 4.7, "S": 6.7, "T": 5.4, "W": 1.1},
    **{"Y": 2.9, "V": 6.9},
}


def places(result):
    """Where the segments of a result lie."""
    sides = ("query_start", "query_end", "candidate_start", "candidate_end")
    return sorted(tuple(segment[side] for side in sides) for segment in result["segments"])


def near(found, wanted):
    """Tell whether segments lie where they should, give or take three residues at an end."""
    assert len(found) == len(wanted), found
    return all(
        abs(a - b) <= 3
        for one in zip(found, wanted, strict=True)
        for a, b in zip(*one, strict=True)
    )


@pytest.mark.parametrize("kernels", ["numba", "torch"])
def test_both_copies_of_a_tandem_are_found(align, kernels):
    n = len(DOMAIN)
    with use_kernels(kernels):
        result = align((DOMAIN, DOMAIN + "GSGSGS" + DOMAIN))
        turned = align((DOMAIN + "GSGSGS" + DOMAIN, DOMAIN))
    assert near(places(result), [(0, n, 0, n), (0, n, n + 6, 2 * n + 6)])
    assert near(places(turned), [(0, n, 0, n), (n + 6, 2 * n + 6, 0, n)])
    p_values = [segment["p_value"] for segment in result["segments"]]
    assert p_values == sorted(p_values) and p_values[0] == result["p_value"]
    assert max(p_values) < 1e-6


@pytest.mark.parametrize("kernels", ["numba", "torch"])
def test_swapped_domains_are_found(align, kernels):
    n, m = len(DOMAIN), len(OTHER)
    with use_kernels(kernels):
        result = align((DOMAIN + OTHER, OTHER + DOMAIN))
    assert near(places(result), [(0, n, m, m + n), (n, n + m, 0, m)])


@pytest.mark.parametrize("letters", ["A", "G", "Q", "S", "L"])
def test_repeats_of_a_letter_are_not_significant(align, letters):
    repeat = letters * (120 // len(letters))
    for candidate in (repeat, repeat[:60], 2 * repeat, OTHER):
        result = align((repeat, candidate))
        assert result["p_value"] > 0.01 and result["segments"] == [], candidate


def test_unrelated_proteins_have_no_segments(align):
    assert align((DOMAIN, OTHER))["segments"] == []
    generator = np.random.default_rng(0)
    weights = np.array(list(COMPOSITION.values()))
    shares = weights / weights.sum()
    pairs = [
        tuple(
            "".join(generator.choice(list(COMPOSITION), generator.integers(60, 250), p=shares))
            for _ in range(2)
        )
        for _ in range(60)
    ]
    p_values = np.array([result["p_value"] for result in align(pairs)])
    assert (p_values <= 0.01).sum() <= 3 and (p_values <= 0.5).mean() < 0.8
    found = align(pairs, evalue=0.001, database_size=10)
    assert sum(bool(result["segments"]) for result in found) <= 1


def test_the_default_checkpoint_is_small_and_described(align):
    folder = Path(align.model.config._name_or_path)
    assert sum(f.stat().st_size for f in folder.iterdir()) < 1_000_000
    assert not list(folder.glob("*.py"))
    assert (folder / "README.md").read_text().startswith("---\n")


def test_a_bundled_head_takes_the_place_of_the_default(tmp_path, monkeypatch):
    config = PlasmaConfig(plm_config=SubstitutionConfig(), head="residual", head_size=8)
    PlasmaModel(config).save_pretrained(tmp_path / "plasma_head_zinc_site")
    monkeypatch.setattr(upstream, "BUNDLED", tmp_path)
    align = pipeline("protein-alignment", task_head="zinc_site")
    assert align.model.config.head == "residual" and not align.model.training
    assert align(PAIR)["score"] >= 0
    with pytest.raises(ValueError, match="'motif'; the heads that are bundled are 'zinc_site'"):
        pipeline("protein-alignment", task_head="motif")


def test_a_profile_has_the_means_of_aligned_residues(align):
    relatives = [CANDIDATE, QUERY[10:], CANDIDATE]
    profile = align.profile(QUERY, relatives)
    query, *projected = align.project([QUERY, *relatives])
    evidence = [align.model.evidence(query, one).scored for one in projected]
    plans = aligned_probabilities(evidence, AVERAGING)
    own, *others = Backbone(align.model.backbone, align.processor).embed([QUERY, *relatives])
    for place in range(0, len(QUERY), 5):
        total, weight = own[place].clone(), 1.0
        for plan, other in zip(plans, others, strict=True):
            for share, row in zip(plan[place].tolist(), other, strict=True):
                total, weight = total + share * row, weight + share
        torch.testing.assert_close(profile.embeddings[place], total / weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(align.profile(QUERY, []).embeddings, own)
    found = align((profile, CANDIDATE))
    assert found.query.sequence == QUERY and found["segments"][0]["query_start"] == 3
