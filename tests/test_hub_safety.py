"""No pickle is read or written unless it is asked for; what remote code runs is what is said."""

import pickle
import pickletools
import re
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor, TrainingArguments
from transformers.trainer_pt_utils import safe_globals

from plasma_hf import DEFAULT_CHECKPOINT, PlasmaConfig, PlasmaModel, ProtAlignModel, load_backbone
from plasma_hf.hub import check_hub_folder, export_to_hub_folder, metric_space, push
from plasma_hf.hub.export import pickles_in
from plasma_hf.models.processing_plasma import substitution_tokenizer
from plasma_hf.models.processing_protalign import ProtAlignProcessor
from plasma_hf.training import PRESETS, PlasmaTrainer
from plasma_hf.training.trainer import BatchTrainer
from tests.helpers.tiny_backbones import FAMILIES, base_and_adapter
from tests.test_protalign import whole_model

TO_RESUME = {"optimizer.pt", "rng_state.pth", "scheduler.pt"}
DOCS = Path(__file__).parents[1] / "docs" / "hub.md"


def is_pickle(file):
    """Tell a pickle by reading it to its end, and the archive that `torch.save` writes."""
    if zipfile.is_zipfile(file):
        return True
    body = file.read_bytes()
    try:
        steps = [step.name for step, *_ in pickletools.genops(body)]
    except ValueError:
        return False
    return steps[-1:] == ["STOP"] and len(body) > 1


def pickles(folder):
    files = (file for file in Path(folder).rglob("*") if file.is_file())
    return sorted(file.relative_to(folder).as_posix() for file in files if is_pickle(file))


def trainer_of(folder, **options):
    torch.manual_seed(0)
    model = PlasmaModel(PlasmaConfig(embedding_size=8, head_size=8))
    protein = torch.arange(96.0).sin().view(12, 8)
    row = {"query_embeddings": protein, "candidate_embeddings": protein, "labels": torch.tensor(1)}
    fields = {"use_cpu": True, "disable_tqdm": True, "max_steps": 2, "eval_strategy": "steps"}
    fields |= {"save_strategy": "steps", "save_steps": 1, "eval_steps": 1}
    arguments = PRESETS["improved"].training_arguments(folder, **fields | options)
    return PlasmaTrainer(model, arguments, train_dataset=[row], eval_dataset=[row])


@pytest.mark.slow
def test_what_is_saved_and_exported_holds_no_pickle(tmp_path):
    plasma = PlasmaModel.from_pretrained(DEFAULT_CHECKPOINT)
    protalign = whole_model()
    tokens = substitution_tokenizer()
    for name, model, reads in (
        ("plasma", plasma, AutoProcessor.from_pretrained(DEFAULT_CHECKPOINT)),
        ("protalign", protalign, ProtAlignProcessor()),
        ("encoder", protalign.sequence_encoder, tokens),
        ("structures", protalign.structure_encoder, None),
    ):
        export_to_hub_folder(model, reads, tmp_path / name)
        model.save_pretrained(tmp_path / "saved" / name)
    metric_space("label_match_score", tmp_path / "label_match_score")
    trainer = trainer_of(tmp_path / "run")
    trainer.train()
    trainer.save_model(str(tmp_path / "trained"))
    found = pickles(tmp_path)
    assert len(list(tmp_path.rglob("*.safetensors"))) > 8
    # To go on with a run that was stopped, and nowhere else.
    assert {Path(file).name for file in found} == TO_RESUME
    assert all(file.startswith("run/checkpoint-") for file in found)
    with safe_globals():  # as Trainer does: arrays of numpy are allowed
        for file in found:
            torch.load(tmp_path / file, weights_only=True)
    assert pickles_in(tmp_path) == found


@pytest.mark.slow
def test_a_run_goes_on_without_the_file_of_arguments(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    wanted = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    again = trainer_of(tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert not list(tmp_path.rglob("training_args.bin"))
    for name, weight in again.model.state_dict().items():
        assert torch.equal(weight, wanted[name])


def test_a_trainer_uploads_no_checkpoint_and_no_objective(tmp_path):
    for strategy in ("checkpoint", "all_checkpoints"):
        with pytest.raises(ValueError, match=f"'{strategy}' would upload pickles of the run"):
            trainer_of(tmp_path, push_to_hub=True, hub_strategy=strategy)
    trainer = object.__new__(BatchTrainer)
    trainer.args, trainer.model = TrainingArguments(tmp_path), torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"leave push_to_hub out, and after training type plasma"):
        trainer.init_hf_repo()


def refuse(*_, **__):
    raise AssertionError("a pickle was read")


def test_loading_reads_no_pickle(tmp_path, monkeypatch):
    backbone = load_backbone(FAMILIES["esm2"](tmp_path / "esm"))
    head = PlasmaModel(PlasmaConfig(embedding_size=32, head_size=8)).attach_backbone(backbone)
    head.save_pretrained(tmp_path / "head")
    whole_model().save_pretrained(tmp_path / "protalign")
    monkeypatch.setattr(torch, "load", refuse)
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert PlasmaModel.from_pretrained(tmp_path / "head").backbone is not None
    assert AutoModel.from_pretrained(DEFAULT_CHECKPOINT).config.model_type == "plasma"
    assert ProtAlignModel.from_pretrained(tmp_path / "protalign").backbone is not None


@pytest.mark.parametrize("kind", ["plasma", "encoder", "backbone"])
def test_a_pickle_is_refused_unless_it_is_asked_for(kind, tmp_path, monkeypatch):
    folder, load = pickled(kind, tmp_path)
    with pytest.raises(OSError, match=r"alone, a pickle.*pass use_safetensors=False \(or set") as e:
        load(folder)
    assert f"{folder} has its weights as pytorch_model.bin" in str(e.value)
    load(folder, use_safetensors=False)
    monkeypatch.setenv("PLASMA_HF_ALLOW_PICKLE", "1")
    load(folder)


def pickled(kind, folder):
    """Return a folder with weights as a pickle, and what loads it."""
    if kind == "backbone":
        folder, load = Path(FAMILIES["esm2"](folder / "esm")), load_backbone
        model = load(folder).model
    elif kind == "encoder":
        model = whole_model().sequence_encoder
        load = type(model).from_pretrained
    else:
        model = PlasmaModel(PlasmaConfig(embedding_size=32, head_size=8))
        load = AutoModel.from_pretrained
    if kind != "backbone":
        model.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder, load


def test_an_adapter_that_is_a_pickle_is_refused_unless_it_is_asked_for(tmp_path):
    peft = pytest.importorskip("peft")
    _, adapter = base_and_adapter(tmp_path)
    folder = tmp_path / "adapter"
    adapter.save_pretrained(folder)
    torch.save(peft.get_peft_model_state_dict(adapter), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(OSError, match=r"adapter_model.bin alone, a pickle.*load_adapter\('"):
        AutoModel.from_pretrained(folder)
    base = PlasmaModel.from_pretrained(tmp_path / "base")
    with pytest.raises(OSError, match="adapter_model.bin alone, a pickle"):
        base.load_adapter(str(folder))
    base.load_adapter(str(folder), use_safetensors=False)
    wanted = [v for k, v in sorted(adapter.state_dict().items()) if "lora_" in k]
    found = [v for k, v in sorted(base.state_dict().items()) if "lora_" in k]
    assert wanted and all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("name", ["training_args.bin", "sub/optimizer.pt", "notes.json"])
def test_a_push_takes_no_pickle_along(name, tmp_path, monkeypatch):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(pickle.dumps({"step": 1}))
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", refuse)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    model = PlasmaModel(PlasmaConfig(embedding_size=8, head_size=4))
    with pytest.raises(ValueError, match=f"may run code when they are read: {name}; delete them"):
        push(model, None, "org/name", folder=tmp_path)


def test_weights_that_are_cut_short_are_found_before_a_push(tmp_path):
    model = PlasmaModel(PlasmaConfig(embedding_size=8, head_size=4))
    folder = export_to_hub_folder(model, None, tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(OSError, match=r"model.safetensors is cut short or damaged; export the"):
        check_hub_folder(folder)


def test_a_safetensors_file_may_begin_like_a_pickle(tmp_path):
    weights, note = tmp_path / "model.safetensors", ""
    for _ in range(2):  # its first bytes are the length of a header, here 0x0280
        save_file({"weight": torch.ones(1)}, weights, metadata={"note": note})
        note += "x" * (0x0280 - int.from_bytes(weights.read_bytes()[:8], "little"))
    assert weights.read_bytes().startswith(b"\x80\x02")
    assert pickles_in(tmp_path) == []


def test_the_docs_count_what_remote_code_runs(tmp_path):
    found = []
    for name, model in {
        "plasma": PlasmaModel.from_pretrained(DEFAULT_CHECKPOINT),
        "protalign": whole_model(),
    }.items():
        folder = export_to_hub_folder(model, None, tmp_path / name)
        code = check_hub_folder(folder)
        found.append((len(code), sum(len((folder / f).read_text().splitlines()) for f in code)))
    counts = r"(\d+) files of\s+([\d,]+) lines for\s+PLASMA,\s+(\d+) of\s+([\d,]+) for\s+ProtAlign"
    told = re.search(counts, DOCS.read_text())
    files, lines = zip(*found, strict=True)
    assert told is not None and (int(told[1]), int(told[3])) == files, f"type {files}, {lines}"
    for position, count in zip((2, 4), lines, strict=True):
        assert abs(int(told[position].replace(",", "")) - count) <= 100, f"type {files}, {lines}"
