"""Folders for the Hub: complete, portable, no pickle; what an older version wrote still loads."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

import plasma_hf
from plasma_hf import PlasmaConfig, PlasmaModel, ProtAlignModel, load_backbone
from plasma_hf.hub import check_hub_folder, export_to_hub_folder
from plasma_hf.models.processing_plasma import substitution_tokenizer
from plasma_hf.models.processing_protalign import ProtAlignProcessor
from tests.helpers.structures import FULL, write_structure
from tests.helpers.tiny_backbones import FAMILIES, base_and_adapter
from tests.test_protalign import whole_model

ROOT = Path(__file__).parents[1]
ROOM = Path(plasma_hf.__file__).parent / "models"
STORED = Path(__file__).parent / "data" / "checkpoints_0.1"
PAIR = ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEV", "AYIAKQRQLSFVKSHFSRQ")
PAPERS = {"LICENSE", "README.md", "export.json", "requirements.txt"}
WORDS = {"tokenizer.json", "tokenizer_config.json"}


def exported(kind, folder):
    """Export a small model of a kind and return the folder."""
    model = None if kind == "plasma" else whole_model()
    if kind == "plasma":
        source = plasma_hf.DEFAULT_CHECKPOINT
        model, reads = PlasmaModel.from_pretrained(source), AutoProcessor.from_pretrained(source)
    elif kind == "protalign":
        reads = ProtAlignProcessor()
    elif kind == "residue_encoder":
        model, reads = model.sequence_encoder, substitution_tokenizer()
    else:
        model, reads = model.structure_encoder, None
    return export_to_hub_folder(model, reads, folder)


@pytest.fixture(scope="module")
def plasma(tmp_path_factory):
    """An exported folder, for tests that leave it as it is."""
    return exported("plasma", tmp_path_factory.mktemp("plasma"))


@pytest.fixture
def copy(plasma, tmp_path):
    """A copy of an exported folder, to spoil."""
    return Path(shutil.copytree(plasma, tmp_path / "copy"))


KINDS = {
    "plasma": WORDS
    | {"processor_config.json", "modules.json", "config_sentence_transformers.json"},
    "protalign": WORDS | {"processor_config.json"},
    "residue_encoder": WORDS,
    "protein_mpnn": set(),
}
MODULES = {kind: f"modeling_{kind}.py" for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_has_what_it_needs_and_nothing_else(kind, tmp_path):
    folder = exported(kind, tmp_path / "made" / "here")
    code = {file.name for file in folder.glob("*.py")}
    assert set(check_hub_folder(folder)) == code and MODULES[kind] in code
    rest = {file.name for file in folder.iterdir()} - code
    assert rest - {"metrics.json"} == {"config.json", "model.safetensors"} | PAPERS | KINDS[kind]
    for name in code:
        assert (folder / name).read_bytes() == (ROOM / name).read_bytes()
    assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert str(tmp_path) not in "".join(f.read_text() for f in folder.glob("*.json"))
    # Again into the same folder: a README that is there stays, all else is the same.
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    (folder / "README.md").write_text("# Mine")
    exported(kind, folder)
    after = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert after == before | {"README.md": b"# Mine"}


def test_requirements_are_those_of_the_package(plasma):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = [*project["dependencies"], *project["optional-dependencies"]["fast"]]
    wanted = {re.split("[<>=]", line)[0]: line for line in known}
    told = re.findall(r"^(?:# .*: )?(\w+>=\S+)$", (plasma / "requirements.txt").read_text(), re.M)
    assert [wanted[re.split("[<>=]", line)[0]] for line in told] == told and len(told) == 4


def test_a_missing_file_is_named_with_who_needs_it(copy):
    for name, asked_by in {
        "modeling_backbone.py": r"\w+.py",
        "pipeline_protein_alignment.py": "config.json|modeling_plasma.py",
        "processing_plasma.py": r"[\w.]+",
        "model.safetensors": "a model",
    }.items():
        (copy / name).rename(copy / "aside")
        with pytest.raises(FileNotFoundError, match=f"has no {name}, which ({asked_by}) needs"):
            check_hub_folder(copy)
        (copy / "aside").rename(copy / name)
    (copy / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no config.json.*export_to_hub_folder"):
        check_hub_folder(copy)


def test_what_is_neither_here_nor_in_the_cache():
    with pytest.raises(FileNotFoundError, match="while online, type: hf download org/n --rev.* v2"):
        check_hub_folder("org/n", revision="v2")
    with pytest.raises(FileNotFoundError, match="/no/such/folder is no folder here"):
        check_hub_folder("/no/such/folder")


def test_a_missing_part_of_the_weights_is_named(copy):
    (copy / "model.safetensors").unlink()
    parts = {"a.weight": "model-00001-of-00002.safetensors"}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    with pytest.raises(FileNotFoundError, match="model-00001-of-00002.safetensors, which model"):
        check_hub_folder(copy)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("stray.py", "x = 1", "files that its model does not use: stray.py; delete"),
        ("training_args.bin", "", "may run code when they are read: training_args.bin; delete"),
        (
            "modeling_backbone.py",
            "from plasma_hf.models import cost",
            "modeling_backbone.py, line 1: `from",
        ),
        (
            "modeling_backbone.py",
            "from ..data import pairs",
            r"modeling_backbone.py, line 1: .* cannot be followed",
        ),
        ("modeling_backbone.py", "from . import cost", r"write `from .sibling import name`"),
        ("processor_config.json", '{"auto_map": {"A": "o/n--m.C"}}', "from another repository"),
    ],
)
def test_what_does_not_belong_there_is_refused(copy, name, text, reason):
    (copy / name).write_text(text)
    with pytest.raises(ValueError, match=reason):
        check_hub_folder(copy)


def test_a_backbone_that_nobody_else_has_goes_along(tmp_path):
    backbone = load_backbone(FAMILIES["esm2"](tmp_path / "my_esm2"))
    fields = {"embedding_size": 32, "head_size": 8, "threshold": 0.0, "diagonal_window": 0}
    model = PlasmaModel(PlasmaConfig(**fields)).attach_backbone(backbone).eval()
    model.save_pretrained(tmp_path / "head", save_backbone=False)
    folder = export_to_hub_folder(model, backbone.processor, tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["plm_name_or_path"] == "my_esm2"
    shutil.rmtree(tmp_path / "my_esm2")
    wanted = model(**backbone.processor(*PAIR)).scores
    assert torch.equal(
        PlasmaModel.from_pretrained(folder)(**backbone.processor(*PAIR)).scores, wanted
    )
    # Of a head alone there is nothing to take along.
    (tmp_path / "my_esm2").mkdir()
    head = PlasmaModel.from_pretrained(tmp_path / "head", load_backbone=False)
    with pytest.raises(ValueError, match=r"my_esm2, a folder of this machine.*load_backbone\(\)"):
        export_to_hub_folder(head, None, tmp_path / "alone")
    with pytest.raises(ValueError, match="a folder of this machine"):
        export_to_hub_folder(model, None, tmp_path / "small", save_backbone=False)


def test_an_adapter_names_a_base_that_others_have(tmp_path):
    model, adapted = base_and_adapter(tmp_path)
    with pytest.raises(ValueError, match=r"trained on .*base, which nobody else has.*base_model="):
        export_to_hub_folder(adapted, None, tmp_path / "refused")
    folder = export_to_hub_folder(adapted, None, tmp_path / "adapter", base_model="org/base")
    weights = {"adapter_config.json", "adapter_model.safetensors"}
    assert {file.name for file in folder.iterdir()} == weights | PAPERS
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        "org/base"
    )
    assert "peft>=" in (folder / "requirements.txt").read_text()
    # Loaded into its base by transformers, the adapter is the same.
    model.load_adapter(str(folder))
    again = export_to_hub_folder(model, None, tmp_path / "again", base_model="org/base")
    first, second = ((f / "adapter_model.safetensors").read_bytes() for f in (folder, again))
    assert first == second and {f.name for f in again.iterdir()} == weights | PAPERS


def test_figures_go_along_with_the_weights_they_are_of(tmp_path):
    model = PlasmaModel(PlasmaConfig(embedding_size=8, head_size=4))
    source = export_to_hub_folder(model, None, tmp_path / "run")
    figures = {"figures": {"eval": {"roc_auc": 0.875, "pairs": 8}}}
    (source / "metrics.json").write_text(json.dumps(figures))
    model = PlasmaModel.from_pretrained(source)
    same = export_to_hub_folder(model, None, tmp_path / "same")
    assert json.loads((same / "metrics.json").read_text()) == figures
    assert "0.875" in (same / "README.md").read_text()
    assert not (same / ".eval_results").exists()  # of no data set on the Hub
    figures["settings"] = {"datasets": ["org/interpro-sites"]}
    (source / "metrics.json").write_text(json.dumps(figures))
    known = export_to_hub_folder(model, None, tmp_path / "known")
    [result] = yaml.safe_load((known / ".eval_results" / "interpro-sites.yaml").read_text())
    assert result["dataset"] == {"id": "org/interpro-sites", "task_id": "validation/roc_auc"}
    assert result["value"] == 0.875
    with torch.no_grad():
        next(model.parameters()).add_(1)
    trained = export_to_hub_folder(model, None, tmp_path / "trained")
    assert not (trained / "metrics.json").exists()
    assert "0.875" not in (trained / "README.md").read_text()


@pytest.mark.parametrize("trust", [None, False, True])
def test_the_code_of_a_folder_does_not_shadow_the_package(copy, trust):
    for file in copy.glob("*.py"):
        file.write_text("raise RuntimeError('code of the folder was run')")
    options = {} if trust is None else {"trust_remote_code": trust}
    model = AutoModel.from_pretrained(copy, **options)
    assert type(model) is PlasmaModel
    assert type(AutoConfig.from_pretrained(copy, **options)) is PlasmaConfig
    assert type(AutoProcessor.from_pretrained(copy, **options)) is plasma_hf.PlasmaProcessor
    for pipe in (
        pipeline("protein-alignment", model=str(copy), **options),
        pipeline("protein-alignment", model=model, processor=plasma_hf.PlasmaProcessor()),
    ):
        assert type(pipe) is plasma_hf.ProteinAlignmentPipeline
        assert pipe(PAIR)["score"] > 0.15


def test_checkpoints_of_version_0_1_load_and_say_the_same():
    # The score is that of today: support rounds and collinear scores of then are no more.
    expected = json.loads((STORED / "expected.json").read_text())
    model = PlasmaModel.from_pretrained(STORED / "plasma")
    processor = AutoProcessor.from_pretrained(STORED / "plasma")
    with torch.no_grad():
        score = float(model(**processor(*expected["pair"])).scores)
    assert score == pytest.approx(expected["score"], abs=1e-6)
    vector = ProtAlignModel.from_pretrained(STORED / "protalign").embed_sequences(
        expected["pair"][:1]
    )
    torch.testing.assert_close(vector[0], torch.tensor(expected["vector"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["plasma", "protalign"])
def test_fields_that_an_older_configuration_lacks_get_their_defaults(kind, tmp_path):
    fields = json.loads((STORED / kind / "config.json").read_text())
    sizes = {"model_type", "embedding_size", "sequence_size", "structure_size"}
    (tmp_path / "config.json").write_text(
        json.dumps({name: value for name, value in fields.items() if name in sizes})
    )
    config = AutoConfig.from_pretrained(tmp_path)
    given = sizes & fields.keys() - {"model_type"}
    fresh = type(config)(**{name: fields[name] for name in given})
    wanted, found = fresh.to_dict(), config.to_dict()
    assert {n for n in wanted if wanted[n] != found[n]} <= {"_name_or_path", "transformers_version"}


ALONE = """
import json, sys
for name in ("plasma_hf", "datasets", "faiss", "numba", "triton", "peft", "sklearn", "evaluate",
             "accelerate", "scipy", "pandas", "matplotlib", "Bio", "tmtools", "sentencepiece"):
    sys.modules[name] = None  # any import of it now fails
import torch
from room.modeling_plasma import PlasmaModel
from room.modeling_protalign import ProtAlignModel
from room.pipeline_protein_alignment import ProteinAlignmentPipeline
from room.processing_plasma import PlasmaProcessor
from room.protein import read_structure

stored, file = sys.argv[1:]
pair = json.loads(open(f"{stored}/expected.json").read())["pair"]
plasma = PlasmaModel.from_pretrained(f"{stored}/plasma").eval()
processor = PlasmaProcessor()
pipe = ProteinAlignmentPipeline(model=plasma, processor=processor)
protalign = ProtAlignModel.from_pretrained(f"{stored}/protalign").eval()
print(json.dumps({
    "score": float(plasma(**processor(*pair)).scores),
    "pipeline": pipe(tuple(pair))["score"],
    "vector": protalign.embed_sequences(pair[:1])[0].tolist(),
    "structure": protalign.embed_structures([read_structure(file)])[0].norm().item(),
}))
"""


@pytest.mark.slow
def test_the_portable_room_runs_alone(tmp_path):
    shutil.copytree(ROOM, tmp_path / "room", ignore=shutil.ignore_patterns("__pycache__"))
    chain = [(name, FULL) for name in ("ALA", "GLY", "LYS", "SER", "TRP", "VAL")]
    file = write_structure(tmp_path / "one.pdb", {"A": chain})
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(STORED), str(file)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    expected = json.loads((STORED / "expected.json").read_text())
    assert found["score"] == pytest.approx(expected["score"], abs=1e-6)
    assert found["pipeline"] == pytest.approx(expected["score"], abs=1e-6)
    assert found["vector"] == pytest.approx(expected["vector"], abs=1e-6)
    assert found["structure"] == pytest.approx(1, abs=1e-6)
