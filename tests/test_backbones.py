"""Input formats and backbones: exact tokens, one row a residue, alone as in a batch."""

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, pipeline

import plasma_hf
from plasma_hf import PlasmaProcessor, load_backbone
from plasma_hf.backbones import BACKBONES, SHORT_NAMES, find_backbone, find_input_format
from plasma_hf.kernels import use_kernels
from plasma_hf.models.modeling_backbone import windows
from plasma_hf.models.processing_plasma import INPUT_FORMATS, InputFormat
from tests.helpers.clients import run_client
from tests.helpers.hub import serve
from tests.helpers.structures import structure_of
from tests.helpers.tiny_backbones import FAMILIES, protssn_files, tm_vec_files

# Every letter of the twenty, and the six with a rule of their own; the second is not upper case.
SEQUENCES = ["ACDEFGHIKLMNPQRSTVWYX", "mkUZOBXJ", "M"]

ESM = [
    [5, 23, 13, 9, 18, 6, 21, 12, 15, 4, 20, 17, 14, 16, 10, 8, 11, 7, 22, 19, 24],
    [20, 15, 26, 27, 28, 25, 24, 24],
    [20],
]
BERT = [
    [6, 23, 14, 9, 19, 7, 22, 11, 12, 5, 21, 17, 16, 18, 13, 10, 15, 8, 24, 20, 25],
    [21, 12, 26, 28, 29, 27, 25, 25],
    [21],
]
BERT_X = [BERT[0], [21, 12, 25, 25, 25, 25, 25, 25], BERT[2]]
T5 = [
    [3, 22, 10, 9, 15, 5, 20, 12, 14, 4, 19, 17, 13, 16, 8, 7, 11, 6, 21, 18, 23],
    [19, 14, 26, 27, 25, 24, 23, 23],
    [19],
]
T5_X = [T5[0], [19, 14, 23, 23, 23, 23, 23, 23], T5[2]]


def framed(front, rows, back):
    return [[*front, *row, *back] for row in rows]


TOKENS = {
    "esm2/native": framed([0], ESM, [2]),
    "esm2/upstream": ESM,
    "prot_bert/native": framed([2], BERT_X, [3]),
    "prot_bert/upstream": BERT,
    "prot_t5/native": framed([], T5_X, [1]),
    "prot_t5/upstream": framed([], T5_X, [1]),
    "prost_t5/native": framed([149], T5_X, [1]),
    "prost_t5/upstream": framed([], T5_X, [1]),
    "ankh/native": framed([], T5, [1]),
    "ankh/upstream": T5,
    "tm_vec/native": framed([], T5_X, [1]),
    "tm_vec/upstream": framed([], T5_X, [1]),
    "protssn/native": framed([0], ESM, [2]),
    "protssn/upstream": framed([0], ESM, [2]),
    "esmc/native": framed([0], ESM, [2]),
}
UNDER = {"tm_vec/native": "prot_t5", "tm_vec/upstream": "prost_t5"} | dict.fromkeys(
    ("protssn/native", "protssn/upstream"), "esm2"
)
FORMATS_OF_SEQUENCES = [name for name, f in INPUT_FORMATS.items() if not f.reads_structures]


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Give the folder of a small random backbone, by family."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = str(FAMILIES[family](tmp_path_factory.mktemp(family)))
        return made[family]

    return folder


@pytest.fixture(scope="session")
def tiny(folders, tmp_path_factory):
    """Load a small random backbone in a named input format."""
    loaded = {}

    def load(name):
        if name not in loaded:
            family, input_format = name.split("/")[0], INPUT_FORMATS[name]
            if family in ("tm_vec", "protssn"):
                input_format = replace(input_format, language_model=folders(UNDER[name]))
                make = tm_vec_files if family == "tm_vec" else protssn_files
                loaded[name] = load_backbone(make(tmp_path_factory.mktemp(family)), input_format)
            else:
                loaded[name] = load_backbone(folders(family), name)
        return loaded[name]

    return load


def random_sequence(length, seed=0):
    letters = torch.randint(20, (length,), generator=torch.Generator().manual_seed(seed))
    return "".join("ACDEFGHIKLMNPQRSTVWY"[i] for i in letters)


def coil(length, seed=0):
    """Give backbone atoms of a random walk, `(residues, 3, 3)`."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(length, 1, 3, generator=generator).cumsum(0) * 3
    return steps + torch.randn(length, 3, 3, generator=generator)


def test_every_input_format_is_tested():
    assert set(TOKENS) == set(INPUT_FORMATS) - {"three_di/native"}  # see test_three_di


@pytest.mark.parametrize("name", TOKENS)
def test_exact_tokens(tiny, name):
    processor = tiny(name).processor
    sequences = [plasma_hf.models.protein.clean_sequence(sequence) for sequence in SEQUENCES]
    assert processor.token_ids(sequences) == TOKENS[name]
    unknown = processor.tokenizer.unk_token_id
    assert unknown is not None and not any(unknown in row for row in TOKENS[name])


@pytest.mark.parametrize("name", FORMATS_OF_SEQUENCES)
def test_one_row_a_residue_at_any_length(tiny, name):
    lengths = (1, 12, 1023, 1024, 1025)
    sequences = [random_sequence(length, length) for length in lengths]
    embedded = tiny(name).embed(sequences)
    assert [tuple(rows.shape) for rows in embedded] == [
        (n, tiny(name).hidden_size) for n in lengths
    ]
    assert all(rows.dtype == torch.float32 for rows in embedded)


@pytest.mark.parametrize("name", ["protssn/native", "protssn/upstream"])
def test_one_row_a_residue_of_a_structure(tiny, name):
    lengths = (1, 12, 1023, 1024, 1025)
    proteins = [
        plasma_hf.models.protein.Protein("p", structure=structure_of(random_sequence(n), coil(n)))
        for n in lengths
    ]
    embedded = tiny(name).embed(proteins)
    assert [len(rows) for rows in embedded] == list(lengths)
    alone = [tiny(name).embed([protein])[0] for protein in proteins[:2]]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(alone, embedded, strict=False))


@pytest.mark.parametrize("name", FORMATS_OF_SEQUENCES)
def test_alone_as_in_a_padded_batch(tiny, name):
    sequences = [random_sequence(length, length) for length in (3, 40, 41, 97, 5)]
    together = tiny(name).embed(sequences)
    for sequence, rows in zip(sequences, together, strict=True):
        alone = tiny(name).embed([sequence])[0]
        assert torch.allclose(alone, rows, atol=1e-5), (alone - rows).abs().max()


@pytest.mark.parametrize("name", FORMATS_OF_SEQUENCES)
def test_letters_have_a_stated_rule(tiny, name):
    backbone = tiny(name)
    as_x = set(backbone.input_format.as_x) | {"J"}
    for letter in "UZOBJ":
        given, x = backbone.embed([f"MKV{letter}LA", "MKVXLA"])
        assert torch.allclose(given, x, atol=1e-6) == (letter in as_x), letter
    lower, upper = backbone.embed(["mkvLa", "MKVLA"])
    assert torch.equal(lower, upper)
    with pytest.raises(ValueError, match="'-' at position 3"):
        backbone.embed(["MK-V"])


@pytest.mark.parametrize("family", ["esm2", "prot_bert", "prost_t5", "ankh"])
def test_upstream_and_native_differ(tiny, family):
    upstream, native = (tiny(f"{family}/{form}") for form in ("upstream", "native"))
    assert not torch.allclose(
        upstream.embed(["MKTAYIAKQR"])[0], native.embed(["MKTAYIAKQR"])[0], atol=1e-3
    )


def test_prot_t5_forms_differ_in_their_windows_alone(tiny):
    upstream, native = tiny("prot_t5/upstream"), tiny("prot_t5/native")
    for length, same in ((1024, True), (1025, False)):
        sequence = random_sequence(length)
        a, b = upstream.embed([sequence])[0], native.embed([sequence])[0]
        assert torch.allclose(a, b, atol=1e-5) == same


def test_tm_vec_forms_stand_on_different_models(tiny, tmp_path):
    released, consistent = tiny("tm_vec/upstream"), tiny("tm_vec/native")
    a, b = (backbone.embed(["MKTAYIAKQR"])[0] for backbone in (released, consistent))
    assert not torch.allclose(a, b, atol=1e-3)
    released.model.save_pretrained(tmp_path)
    again = load_backbone(tmp_path)
    assert again.input_format.name == "tm_vec/upstream"
    torch.testing.assert_close(again.embed(["MKTAYIAKQR"])[0], a, rtol=0, atol=1e-6)


def test_protssn_forms_have_different_graphs(tiny, tmp_path):
    protein = plasma_hf.models.protein.Protein(
        "p", structure=structure_of("MKTAYIAKQR" * 4, coil(40))
    )
    released, consistent = tiny("protssn/upstream"), tiny("protssn/native")
    assert released.model.config.k_neighbors == released.model.config.edge_statistics == 10
    a, b = (backbone.embed([protein])[0] for backbone in (released, consistent))
    assert not torch.allclose(a, b, atol=1e-4)
    consistent.model.save_pretrained(tmp_path)
    again = load_backbone(tmp_path, "protssn/upstream")
    torch.testing.assert_close(again.embed([protein])[0], a, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="PDB"):
        released.embed(["MKV"])


def test_a_real_structure(tiny, full_golden):
    path = full_golden / "protssn" / "pdbs" / "5L33.pdb"
    rows = tiny("protssn/native").embed([path])[0]
    protein = tiny("protssn/native").processor.read(path)
    assert len(rows) == len(protein.sequence) == 106


@pytest.mark.slow
@given(st.integers(1, 5000), st.integers(2, 400))
def test_windows_cover_each_residue_once(length, limit):
    cut = windows(length, limit)
    assert [keep for _, _, *keep in cut] == [
        [a, b] for a, b in zip([0, *(w[3] for w in cut)], [w[3] for w in cut], strict=False)
    ]
    assert cut[-1][3] == length
    for (_, end, _, kept), (start, *_) in zip(cut, cut[1:], strict=False):
        assert end - start >= limit // 4 and end - kept >= (end - start) // 2 - 1
    assert all(0 <= s <= a < b <= e <= length and e - s <= limit for s, e, a, b in cut)


def test_a_window_gives_what_the_protein_alone_would(tiny, folders):
    backbone = load_backbone(folders("esm2"), "esm2/native", max_residues=40)
    sequence = random_sequence(100)
    rows = backbone.embed([sequence])[0]
    for start, end, keep_start, keep_end in windows(100, 40):
        alone = backbone.embed([sequence[start:end]])[0][keep_start - start : keep_end - start]
        assert torch.allclose(rows[keep_start:keep_end], alone, atol=1e-6)
    assert not torch.allclose(rows, tiny("esm2/native").embed([sequence])[0], atol=1e-3)
    assert backbone.fingerprint["max_residues"] == "40"


def test_a_generic_input_format_for_any_tokenizer(folders):
    forms = {family: load_backbone(folders(family)).input_format.text for family in FAMILIES}
    spaced = dict.fromkeys(("prot_bert", "prot_t5", "prost_t5"), "spaced")
    assert forms == spaced | dict.fromkeys(("esm2", "ankh", "esmc"), "raw")
    assert load_backbone(folders("prot_bert")).embed(["MKVLA"])[0].shape == (5, 32)


def test_learned_positions_limit_a_window(folders):
    backbone = load_backbone(folders("prot_bert"), "prot_bert/native")
    assert backbone.input_format.max_residues == 1098  # of 1100 positions
    assert len(backbone.embed([random_sequence(1500)])[0]) == 1500


def test_a_tokenizer_that_merges_residues_is_refused():
    pieces = {"<unk>": 0, "MK": 1} | {letter: i for i, letter in enumerate("ACDEFGHIKLMNP", 2)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(pieces, unk_token="<unk>")), unk_token="<unk>"
    )
    with pytest.raises(ValueError, match="in none of the text forms raw, spaced, list"):
        PlasmaProcessor(tokenizer)


def test_a_letter_without_token_and_without_x_is_refused():
    letters = {"<unk>": 0} | {letter: i for i, letter in enumerate("ACDEFGHIKLMNPQRSTVWY", 1)}
    model = models.Unigram([(piece, 0.0) for piece in letters], unk_id=0)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="<unk>")
    processor = PlasmaProcessor(tokenizer)
    assert processor.encode(["MKV"])["mask"].sum() == 3
    with pytest.raises(ValueError, match="a query has the residue 'U'"):
        processor("MKU", "MKV")


def test_a_prefix_without_token_is_refused(folders):
    with pytest.raises(ValueError, match="begins with <AA2fold>"):
        load_backbone(folders("prot_t5"), "prost_t5/native").embed(["MKV"])


def test_processor_saves_its_input_format(tiny, tmp_path):
    processor = tiny("prost_t5/native").processor
    processor.save_pretrained(tmp_path)
    again = PlasmaProcessor.from_pretrained(tmp_path)
    assert again.input_format == processor.input_format
    assert torch.equal(again.encode(["MKV"])["input_ids"], processor.encode(["MKV"])["input_ids"])
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert not [name for name in saved if name.startswith("_")]


def test_half_precision_files_compute_in_float32(tmp_path):
    FAMILIES["prot_t5"](tmp_path, half=True)
    assert load_backbone(tmp_path, "prot_t5/native").model.dtype == torch.float32
    assert (
        load_backbone(tmp_path, "prot_t5/native", dtype=torch.bfloat16).embed(["MKV"])[0].dtype
        == torch.float32
    )


def test_embeddings_that_overflow_are_refused(tmp_path):
    FAMILIES["esm2"](tmp_path)
    backbone = load_backbone(tmp_path)
    with torch.no_grad():
        backbone.model.encoder.emb_layer_norm_after.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"protein 0, by .* has NaN or infinite .*float32"):
        backbone.embed(["MKV"])


def test_named_backbones_know_their_input_formats():
    assert find_input_format("facebook/esm2_t6_8M_UR50D").name == "esm2/native"
    assert find_input_format("prot_bert", "upstream").name == "prot_bert/upstream"
    assert find_input_format("org/else") is None
    with pytest.raises(
        ValueError, match=r"input_format='upstream' for org/else; accepted are 'generic'"
    ):
        find_input_format("org/else", "upstream")
    with pytest.raises(ValueError, match="accepted are raw, spaced, list"):
        InputFormat("mine", text="word")
    assert {known.family for known in BACKBONES.values() if known.forms} == {
        name.split("/")[0] for name in INPUT_FORMATS
    }


def test_a_missing_backbone_says_what_to_fetch():
    with pytest.raises(OSError, match="type: hf download facebook/esm2_t33_650M_UR50D"):
        load_backbone("esm2_t33_650M_UR50D")
    with pytest.raises(OSError, match="figshare files 46296322 and 46296310"):
        load_backbone("TM-Vec")
    with pytest.raises(OSError, match="hf download tyang816/ProtSSN"):
        load_backbone("ProtSSN")


def test_a_folder_without_the_published_files(tmp_path):
    (tmp_path / "TM-Vec").mkdir()
    with pytest.raises(ValueError, match=r"has 0 files \*\.ckpt"):
        load_backbone(tmp_path / "TM-Vec")


def test_a_plasma_model_is_no_backbone():
    with pytest.raises(ValueError, match="is a PLASMA model, not a backbone"):
        load_backbone(plasma_hf.DEFAULT_CHECKPOINT)


def test_ankh_says_its_licence_once(tmp_path, caplog):
    folder = FAMILIES["ankh"](tmp_path / "ankh-base")
    with caplog.at_level(logging.WARNING), Propagating("transformers"):
        for _ in range(2):
            load_backbone(folder)
    said = [record for record in caplog.records if "allows no commercial use" in record.message]
    assert len(said) == 1


class Propagating:
    """Let the log records of a library reach pytest."""

    def __init__(self, name):
        self.logger = logging.getLogger(name)

    def __enter__(self):
        self.before = self.logger.propagate, self.logger.level
        self.logger.propagate = True
        self.logger.setLevel(logging.WARNING)

    def __exit__(self, *_):
        self.logger.propagate = self.before[0]
        self.logger.setLevel(self.before[1])


def test_a_short_name_is_a_name_of_the_table(tmp_path, monkeypatch):
    for short, name in SHORT_NAMES.items():
        assert find_backbone(short) is BACKBONES[name]
    wanted = (
        "substitution near esm2-8m esm2-35m esm2-150m esm2-650m esm2-3b protbert prott5 prostt5"
    )
    assert {*wanted.split(), "ankh", "esmc-300m", "3di"} == set(SHORT_NAMES)
    assert find_input_format("prostt5") == INPUT_FORMATS["prost_t5/native"]
    assert find_input_format("near") is None
    # A folder of that name does not take its place.
    monkeypatch.chdir(tmp_path)
    Path("near").mkdir()
    assert load_backbone("near").hidden_size == 256
    with pytest.raises(OSError, match=r"did you mean esm2-8m.*org/name.*prott5"):
        load_backbone("esm2-8")


PAIR = ("MKTAYIAKQRQISFVKSHFSRQ", "AYIAKQRQLSFVKSHFS")
PROT_T5 = "Rostlab/prot_t5_xl_half_uniref50-enc"
ALIGN = """
import json, os, sys
from typer.testing import CliRunner
from plasma_hf.cli.main import app

found = []
for name in sys.argv[3:]:
    words = ["align", *sys.argv[1:3], "--backbone", name, "--device", "cpu", "--format", "json"]
    done = CliRunner().invoke(app, words)
    score = json.loads(done.stdout)["score"] if done.exit_code == 0 else None
    found.append({"code": done.exit_code, "score": score, "said": done.stderr.splitlines()})
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def first_uses(folders, tmp_path_factory):
    """What is said, and what comes out, when backbones are used for the first time and later."""
    folder = tmp_path_factory.mktemp("first_uses")
    # The architecture of the published model in full, 30 MB, with random weights.
    esm2 = FAMILIES["esm2"](folder / "esm2", width=320, layers=6, heads=20, inner=1280)
    pickled = Path(shutil.copytree(folders("prot_t5"), folder / "pickled"))
    (pickled / "model.safetensors").unlink()
    torch.save({"weight": torch.ones(1)}, pickled / "pytorch_model.bin")

    def run(*names, **environment):
        environment["PLASMA_HF_KERNELS"] = "torch"
        return run_client(ALIGN, (*PAIR, *names), folder, "home", **environment)

    def on_hub(names, served, **options):
        with serve(served, **options) as address:
            return run(*names, HF_ENDPOINT=address, HF_HUB_OFFLINE="0")

    found = {}
    served = {"facebook/esm2_t6_8M_UR50D": esm2}
    found["interrupted"] = on_hub(["esm2-8m", "esm2-8m"], served, interrupt=True)
    # Another, as a job leaves it that was stopped before the weights were there.
    cache = folder / "home" / "hub"
    half = cache / "models--facebook--esm2_t12_35M_UR50D"
    shutil.copytree(cache / "models--facebook--esm2_t6_8M_UR50D", half, symlinks=True)
    [weights] = half.glob("snapshots/*/model.safetensors")
    for file in (weights.resolve(), weights):
        file.unlink()
    names = ["esm2-8m", "esm2-35m", "esm2-150m"]
    found["offline"] = run(*names, HF_HUB_OFFLINE="1")
    found["no network"] = run(*names, HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")
    served = {"facebook/esm2_t12_35M_UR50D": esm2, PROT_T5: pickled}
    served[f"{PROT_T5}@refs/pr/1"] = folders("prot_t5")
    names = ["esm2-35m", "prott5"]
    found["later"] = on_hub(names, served) + run(*names, HF_HUB_OFFLINE="1")
    found["files"] = {file.name for file in cache.glob("models--Rostlab*/snapshots/*/*")}
    for name, source in (("esm2/native", esm2), ("prot_t5/native", folders("prot_t5"))):
        align = pipeline("protein-alignment", model=plasma_hf.load_aligner(source, name))
        with use_kernels("torch"):
            found[name] = pytest.approx(align(PAIR)["score"], abs=1e-6)
    return found


@pytest.mark.slow
def test_a_name_is_downloaded_once_even_if_the_connection_breaks(first_uses):
    # Only a request for the rest of the weights is answered in full.
    first, again = first_uses["interrupted"]
    for used in (first, again, first_uses["offline"][0], first_uses["no network"][0]):
        assert used["score"] == first_uses["esm2/native"], used
    said, hint = first["said"]
    assert "downloading facebook/esm2_t6_8M_UR50D, 30.1 MB, licence: MIT; " in said
    assert hint.endswith("once and for all: plasma-hf calibrate esm2-8m")
    later = (again, first_uses["offline"][0], first_uses["no network"][0])
    assert all(used["said"] in ([], [hint]) for used in later)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["offline", "no network"])
def test_what_is_not_there_is_one_line_with_what_to_type(first_uses, where):
    _, *refused = first_uses[where]
    for used, size in zip(refused, ("t12_35M", "t30_150M"), strict=True):
        [said] = used["said"]
        assert used["code"] == 2
        assert re.search(f"hile online, type: hf download facebook/esm2_{size}_UR50D", said)
    if where == "offline":
        assert "its download was not finished" in refused[0]["said"][0]


@pytest.mark.slow
def test_a_download_that_was_stopped_goes_on_and_a_pickle_comes_converted(first_uses):
    esm2, prot_t5, *offline = first_uses["later"]
    for used in ([esm2, prot_t5], offline):
        assert used[0]["score"] == first_uses["esm2/native"], used
        assert used[1]["score"] == first_uses["prot_t5/native"], used
    assert "downloading facebook/esm2_t12_35M_UR50D, 30.1 MB" in esm2["said"][0]
    assert re.search(f"downloading {PROT_T5}, .* MB, licence: AFL-3.0; ", prot_t5["said"][0])
    assert "model.safetensors" in first_uses["files"]
    assert "pytorch_model.bin" not in first_uses["files"]
