"""Input formats and backbones: exact tokens, one row a residue, alone as in a batch."""

import json
import logging
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import plasma_hf
from plasma_hf import PlasmaProcessor, load_backbone
from plasma_hf.backbones import BACKBONES, find_input_format
from plasma_hf.models.modeling_backbone import windows
from plasma_hf.models.processing_plasma import INPUT_FORMATS, InputFormat
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
    assert set(TOKENS) == set(INPUT_FORMATS)


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
    assert {known.family for known in BACKBONES.values()} == {
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
