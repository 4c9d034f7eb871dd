"""LoRA over the backbone: train, stop early, save the adapter alone, load it, merge it."""

import json

import pytest
import torch
from transformers import (
    AutoModel,
    EarlyStoppingCallback,
    EsmConfig,
    Trainer,
    TrainingArguments,
    pipeline,
)

from plasma_hf import PlasmaConfig, PlasmaModel, load_backbone
from plasma_hf.data import PairCollator
from plasma_hf.training import lora_config
from tests.helpers.tiny_backbones import FAMILIES

peft = pytest.importorskip("peft")

PAIR = ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEV", "AYIAKQRQLSFVKSHFSRQ")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Folder of a small saved PLASMA over a small random ESM-2, and the folder of that."""
    folder = tmp_path_factory.mktemp("lora")
    backbone = load_backbone(FAMILIES["esm2"](folder / "esm2_t6_8M_UR50D"))
    torch.manual_seed(0)
    fields = {"embedding_size": 32, "head_size": 16, "threshold": 0.0, "diagonal_window": 0}
    model = PlasmaModel(PlasmaConfig(**fields, score_loss_form="affine")).attach_backbone(backbone)
    model.save_pretrained(folder / "base")
    backbone.processor.save_pretrained(folder / "base")
    return folder / "base", backbone.processor


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """The adapter of one run of Trainer, its trainer and the folder that it was saved to."""
    folder, processor = base
    torch.manual_seed(0)
    model = PlasmaModel.from_pretrained(folder)
    adapted = peft.get_peft_model(model, lora_config(model, rank=4))
    rows = [{"query": PAIR[0], "candidate": PAIR[i % 2], "label": 1 - i % 2} for i in range(8)]
    output = tmp_path_factory.mktemp("run")
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=4,
        num_train_epochs=6,
        learning_rate=0.05,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    trainer = Trainer(
        adapted,
        arguments,
        data_collator=PairCollator(processor),
        train_dataset=rows,
        eval_dataset=rows[:4],
        callbacks=[EarlyStoppingCallback(early_stopping_patience=1)],
    )
    trainer.train()
    adapted.eval().save_pretrained(output / "adapter")
    return adapted, trainer, output / "adapter"


def scores(model, processor):
    with torch.no_grad():
        return model.eval()(**processor(*PAIR)).scores


@pytest.mark.slow
def test_training_learns_and_keeps_the_best(base, trained):
    adapted, trainer, _ = trained
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert min(losses) < losses[0] and trainer.state.best_metric == min(losses)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), abs=1e-6)
    assert scores(adapted, base[1]) != scores(PlasmaModel.from_pretrained(base[0]), base[1])


def test_an_adapter_is_small_and_loads_equal(base, trained):
    folder, processor = base
    adapted, _, adapter = trained
    assert sum(file.stat().st_size for file in adapter.iterdir()) < 2_000_000
    names = json.loads((adapter / "adapter_config.json").read_text())
    assert names["base_model_name_or_path"] == str(folder)
    wanted = scores(adapted, processor)
    onto = peft.PeftModel.from_pretrained(PlasmaModel.from_pretrained(folder), adapter)
    alone = AutoModel.from_pretrained(adapter)
    for loaded in (onto, alone):
        assert (scores(loaded, processor) - wanted).abs().max() < 1e-6


def test_a_merged_adapter(base, trained, tmp_path):
    folder, processor = base
    adapted, _, adapter = trained
    onto = peft.PeftModel.from_pretrained(PlasmaModel.from_pretrained(folder), adapter)
    merged = onto.merge_and_unload()
    wanted = scores(adapted, processor)
    assert torch.allclose(scores(merged, processor), wanted, atol=1e-5)
    merged.save_pretrained(tmp_path)  # the backbone changed, so it is saved as well
    again = PlasmaModel.from_pretrained(tmp_path, load_backbone=False)
    assert (scores(again, processor) - scores(merged, processor)).abs().max() < 1e-6


def test_an_adapter_in_the_pipeline(base, trained):
    adapted, _, adapter = trained
    wanted = float(scores(adapted, base[1]))
    processor = base[1]
    given = pipeline("protein-alignment", model=adapted, processor=processor)
    by_name = pipeline("protein-alignment", model=str(adapter), processor=processor)
    loaded = pipeline("protein-alignment", model=AutoModel.from_pretrained(adapter))
    for pipe in (given, by_name, loaded):
        assert pipe(PAIR)["score"] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_backbone_takes_an_adapter(family, tmp_path):
    backbone = load_backbone(FAMILIES[family](tmp_path))
    model = PlasmaModel(PlasmaConfig(embedding_size=32, head_size=8)).attach_backbone(backbone)
    adapted = peft.get_peft_model(model, lora_config(model))
    beside = {name for name, p in adapted.named_parameters() if "lora_A" in name}
    assert len(beside) == 4  # query and value of two layers
    assert all(p.requires_grad for n, p in adapted.named_parameters() if "lora" in n)


def test_what_cannot_be_adapted():
    with pytest.raises(ValueError, match=r"load it first with model.load_backbone"):
        lora_config(PlasmaModel(PlasmaConfig(embedding_size=8)))
    esm = EsmConfig(
        vocab_size=33,
        pad_token_id=1,
        mask_token_id=32,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    hinge = PlasmaModel(PlasmaConfig(plm_config=esm, head="hinge"))
    assert lora_config(hinge).modules_to_save is None
