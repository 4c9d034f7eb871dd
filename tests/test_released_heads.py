"""Heads and the backbones under them: released, saved small, saved whole, from the Hub, offline."""

import json
import shutil

import pytest
import torch
from transformers import AutoModel, pipeline

from plasma_hf import PlasmaConfig, PlasmaModel, load_backbone
from tests.helpers.clients import run_client
from tests.helpers.hub import COMMIT, serve
from tests.helpers.tiny_backbones import FAMILIES

TASKS = ("active_site", "binding_site", "motif")
HEADS = {  # folder names of the released heads, and the width of their embeddings
    "esm2_t33_650M_UR50D": ("esm2", 1280),
    "prot_bert": ("prot_bert", 1024),
    "ankh-base": ("ankh", 768),
    "prot_t5_xl_half_uniref50-enc": ("prot_t5", 1024),
    "ProstT5": ("prost_t5", 1024),
    "TM-Vec": ("tm_vec", 1024),
    "ProtSSN": ("protssn", 1280),
}
PAIR = ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEV", "AYIAKQRQLSFVKSHFSRQ")


def released_head(folder, task, backbone, width, threshold=0.5, window=10):
    """Write a random head in the layout of the released ones."""
    torch.manual_seed(0)
    fields = {"embedding_size": width, "head_size": 8, "threshold": threshold}
    metadata = {"task": task, "backbone": backbone}
    config = PlasmaConfig(**fields, diagonal_window=window, released_metadata=metadata)
    return PlasmaModel(config).save_upstream(folder)


@pytest.fixture
def esm(tmp_path):
    """The folder of a small ESM-2, and a released head for it."""
    folder = FAMILIES["esm2"](tmp_path / "esm2_t33_650M_UR50D")
    released_head(tmp_path / "plasma", "active_site", folder.name, 32, threshold=0.0, window=5)
    return folder, tmp_path / "plasma"


def head_of(plasma):
    return PlasmaModel.from_upstream(plasma, task="active_site", backbone="esm2_t33_650M_UR50D")


def test_all_released_heads_load(tmp_path):
    thresholds = iter(range(1, 22))
    for task in TASKS:
        for backbone, (_, width) in HEADS.items():
            released_head(tmp_path, task, backbone, width, next(thresholds) / 100, 3)
    thresholds = iter(range(1, 22))
    for task in TASKS:
        for backbone, (family, width) in HEADS.items():
            model = PlasmaModel.from_upstream(tmp_path, task=task, backbone=backbone)
            config = model.config
            assert (config.embedding_size, config.plm_name_or_path) == (width, backbone)
            assert config.plm_recipe == f"{family}/upstream"
            assert (config.threshold, config.diagonal_window) == (next(thresholds) / 100, 3)
            assert model.backbone is None
            embeddings = torch.randn(1, 12, width)
            assert model(embeddings, embeddings).scores.shape == (1,)


def test_a_head_loads_its_backbone_under_its_own_recipe(esm):
    folder, plasma = esm
    model = head_of(plasma)
    processor = model.load_backbone(folder)
    assert processor.input_format.name == "esm2/upstream"
    align = pipeline("protein-alignment", model=model)
    embedded = load_backbone(folder, "upstream").embed(PAIR)
    by_hand = head_of(plasma)(*(rows.unsqueeze(0) for rows in embedded)).scores.detach()
    assert align(PAIR)["score"] == pytest.approx(float(by_hand), abs=1e-6)
    assert align((PAIR[0], embedded[1]))["score"] == pytest.approx(float(by_hand), abs=1e-6)
    native = head_of(plasma)(*(r.unsqueeze(0) for r in load_backbone(folder).embed(PAIR))).scores
    assert abs(float(native.detach() - by_hand)) > 1e-6
    with pytest.raises(
        ValueError, match=r"in the input format 'esm2/upstream', the processor.*native"
    ):
        pipeline("protein-alignment", model=model, processor=load_backbone(folder).processor)


def test_the_pipeline_says_which_backbone_is_missing(esm):
    align = pipeline("protein-alignment", model=head_of(esm[1]))
    with pytest.raises(OSError, match="type: hf download facebook/esm2_t33_650M_UR50D"):
        align(PAIR)
    assert align((torch.randn(12, 32), torch.randn(9, 32)))["score"] >= 0
    report = align([PAIR], on_error="report")
    assert "hf download" in report[0]["error"]


def test_a_checkpoint_is_small_and_complete(esm, tmp_path):
    folder, plasma = esm
    model = head_of(plasma)
    model.load_backbone(folder)
    pipe = pipeline("protein-alignment", model=model)
    expected = pipe(PAIR)["score"]
    pipe.save_pretrained(tmp_path / "small")
    pipe.save_pretrained(tmp_path / "whole", save_backbone=True)
    small, whole = (
        (tmp_path / name / "model.safetensors").stat().st_size for name in ("small", "whole")
    )
    parameters = sum(p.numel() for p in model.alignment_head.parameters())
    assert small < 4 * parameters + 2000 < whole
    described = json.loads((tmp_path / "small" / "config.json").read_text())
    assert described["plm_config"]["num_hidden_layers"] == 2
    assert described["plm_name_or_path"] == str(folder)
    assert described["plm_recipe"] == "esm2/upstream"
    for name in ("small", "whole"):
        again = pipeline("protein-alignment", model=str(tmp_path / name))
        assert again(PAIR)["score"] == expected
        assert not any(p.requires_grad for p in again.model.backbone.parameters())
    shutil.rmtree(folder)
    assert pipeline("protein-alignment", model=str(tmp_path / "whole"))(PAIR)["score"] == expected
    with pytest.raises(OSError, match=rf"the backbone {folder} is no folder here"):
        AutoModel.from_pretrained(tmp_path / "small")
    head = AutoModel.from_pretrained(tmp_path / "small", load_backbone=False)
    assert head.backbone is None and head(torch.randn(1, 9, 32), torch.randn(1, 9, 32)).scores >= 0


def test_weights_that_changed_are_saved(esm, tmp_path):
    folder, plasma = esm
    model = head_of(plasma)
    processor = model.load_backbone(folder)
    with torch.no_grad():
        model.backbone.encoder.layer[0].attention.self.query.weight.add_(0.1)
    batch = processor(*PAIR)
    expected = model(**batch).scores
    with pytest.raises(ValueError, match="left out they would be lost"):
        model.save_pretrained(tmp_path / "trained", save_backbone=False)
    model.save_pretrained(tmp_path / "trained")
    shutil.rmtree(folder)
    again = PlasmaModel.from_pretrained(tmp_path / "trained")
    torch.testing.assert_close(again(**batch).scores, expected, rtol=0, atol=1e-6)
    again.save_pretrained(tmp_path / "again")
    third = PlasmaModel.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(third(**batch).scores, expected, rtol=0, atol=1e-6)


def test_a_frozen_backbone_embeds_as_in_inference(tmp_path):
    FAMILIES["prost_t5"](tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dropout_rate": 0.5}))
    backbone = load_backbone(tmp_path, "prost_t5/native")
    model = PlasmaModel(PlasmaConfig(embedding_size=32, head_size=8)).attach_backbone(backbone)
    batch = backbone.processor(*PAIR)

    def twice():
        model.train()
        return [model(**batch, return_plan=True).cost for _ in range(2)]

    assert torch.equal(*twice())
    model.backbone.requires_grad_(True)
    assert not torch.equal(*twice())


def test_other_backbones_are_refused(esm, tmp_path):
    other = FAMILIES["prot_bert"](tmp_path / "prot_bert")
    with pytest.raises(ValueError, match="made for the backbone 'esm2_t33_650M_UR50D', not for"):
        head_of(esm[1]).attach_backbone(load_backbone(other))
    with pytest.raises(ValueError, match="does not say which backbone"):
        PlasmaModel(PlasmaConfig(embedding_size=32)).load_backbone()


def test_a_head_over_structures(tmp_path, full_golden):
    """ProtSSN under its released pairing, through the pipeline, saved and loaded."""
    from tests.helpers.tiny_backbones import protssn_files

    esm = FAMILIES["esm2"](tmp_path / "esm2_t33_650M_UR50D")
    files = tmp_path / "ProtSSN"
    files.mkdir()
    protssn_files(files)
    from dataclasses import replace

    from plasma_hf.models.processing_plasma import INPUT_FORMATS

    input_format = replace(INPUT_FORMATS["protssn/upstream"], language_model=str(esm))
    backbone = load_backbone(files, input_format)
    released_head(tmp_path / "plasma", "motif", "ProtSSN", 32)
    model = PlasmaModel.from_upstream(tmp_path / "plasma", task="motif", backbone="ProtSSN")
    model.attach_backbone(backbone)
    align = pipeline("protein-alignment", model=model)
    pdbs = full_golden / "protssn" / "pdbs"
    pair = (str(pdbs / "5L33.pdb"), str(pdbs / "6MRR.pdb"))
    result = align(pair, return_plan=True)
    assert result["plan"].shape == (106, 68)
    batch = backbone.processor(*(backbone.processor.read(path) for path in pair))
    assert float(model(**batch).scores.detach()) == pytest.approx(result["score"], abs=1e-6)
    align.save_pretrained(tmp_path / "whole", save_backbone=True)
    again = pipeline("protein-alignment", model=str(tmp_path / "whole"))
    assert again(pair)["score"] == pytest.approx(result["score"], abs=1e-6)
    with pytest.raises(ValueError, match="PDB or mmCIF"):
        again(PAIR)


HUB = """
import json, sys
from transformers import pipeline
import plasma_hf
model = plasma_hf.PlasmaModel.from_upstream(
    "zhiyuw/plasma", task="active_site", backbone="esm2_t33_650M_UR50D"
)
align = pipeline("protein-alignment", model=model)
score = align(tuple(json.loads(sys.argv[1])))["score"]
align.save_pretrained(sys.argv[2])
print(json.dumps([score, model.config.plm_name_or_path, model.config.plm_revision]))
"""
LOAD = """
import json, sys, plasma_hf
from transformers import AutoModel
try:
    AutoModel.from_pretrained(sys.argv[1])
    print('"there"')
except OSError as error:
    print(json.dumps(str(error)))
"""


@pytest.mark.slow
def test_from_the_hub_and_then_without_it(esm, tmp_path):
    folder, plasma = esm
    repositories = {"zhiyuw/plasma": plasma, "facebook/esm2_t33_650M_UR50D": folder}
    away = tmp_path / "away"
    away.mkdir()
    pair, there = json.dumps(PAIR), (away, "hf")
    with serve(repositories) as address:
        online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        told = run_client(HUB, [pair, tmp_path / "small"], *there, **online)
    model = head_of(plasma)
    model.load_backbone(folder)
    expected = pipeline("protein-alignment", model=model)(PAIR)["score"]
    assert told == [pytest.approx(expected), "facebook/esm2_t33_650M_UR50D", COMMIT]
    assert run_client(HUB, [pair, tmp_path / "again"], *there, HF_HUB_OFFLINE="1") == told
    assert run_client(LOAD, [tmp_path / "small"], *there, HF_HUB_OFFLINE="1") == "there"
    elsewhere = run_client(LOAD, [tmp_path / "small"], away, "empty", HF_HUB_OFFLINE="1")
    assert f"hf download facebook/esm2_t33_650M_UR50D --revision {COMMIT}" in elsewhere


def test_a_head_on_the_hub_is_named_in_full():
    with pytest.raises(ValueError, match="is no folder here; to load from the Hub give task and"):
        PlasmaModel.from_upstream("org/heads", task="motif")
