"""Pairs as batches of stored embeddings, alone and in a Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from plasma_hf import PlasmaConfig, PlasmaModel
from plasma_hf.data import EmbeddingStore, PairCollator
from tests.helpers.store_job import TinyEsm, make_head

SEQUENCES = {"P1": "MKVLAAC", "P2": "ACD", "P3": "MKVLACDWY"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    store = EmbeddingStore.create(
        tmp_path_factory.mktemp("store"), TinyEsm(), make_head(), dtype="float16"
    )
    store.add(SEQUENCES.items(), TinyEsm(), make_head())
    return store


def row(query: str, candidate: str, label: int, sites: bool = True) -> dict[str, Any]:
    pair: dict[str, Any] = {"query": query, "candidate": candidate, "label": label}
    if sites:
        for side in ("query", "candidate"):
            length = len(SEQUENCES.get(pair[side], pair[side]))
            pair[f"{side}_site_labels"] = [int(i < 2) for i in range(length)]
    return pair


def test_the_batch_is_what_the_model_takes(store: EmbeddingStore) -> None:
    rows = [row("P1", "P2", 1), row("P2", "P3", 0)]
    batch = PairCollator(store, by="id")(rows)
    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {
        "query_embeddings": (2, 7, 32),
        "query_mask": (2, 7),
        "query_site_labels": (2, 7),
        "candidate_embeddings": (2, 9, 32),
        "candidate_mask": (2, 9),
        "candidate_site_labels": (2, 9),
        "labels": (2,),
    }
    assert batch["query_embeddings"].dtype == torch.float32
    assert torch.equal(batch["query_embeddings"][1, :3], store.read("P2", dtype=torch.float32))
    assert batch["query_mask"].sum(-1).tolist() == [7, 3]
    assert batch["labels"].tolist() == [1, 0]
    output = make_head()(**batch)
    alone = make_head()(**PairCollator(store, by="id")(rows[1:]))
    assert torch.allclose(output.scores[1], alone.scores[0], atol=1e-5)
    assert output.loss.isfinite()


def test_rows_without_labels(store: EmbeddingStore) -> None:
    rows = [{"query": SEQUENCES["P1"], "candidate": SEQUENCES["P3"]}]
    batch = PairCollator(store, kind="projections")(rows)
    assert set(batch) == {
        "query_embeddings",
        "query_mask",
        "candidate_embeddings",
        "candidate_mask",
    }
    assert batch["query_embeddings"].shape == (1, 7, 8)
    assert PairCollator(store)([rows[0] | {"labels": True}])["labels"] == 1


def test_errors_name_what_is_wrong(store: EmbeddingStore, tmp_path: Path) -> None:
    collate = PairCollator(store, by="id")
    with pytest.raises(
        ValueError, match=r"query: .* sequence 'P1'; .*where rows hold ids, .*by='id'"
    ):
        PairCollator(store)([{"query": "P1", "candidate": "P2"}])
    with pytest.raises(ValueError, match="by is 'name'; give 'sequence' or 'id'"):
        PairCollator(store, by="name")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"candidate: .* no protein .* 'P9'; add it with: plasma-hf"
    ):
        collate([{"query": "P1", "candidate": "P9"}])
    with pytest.raises(ValueError, match="no 'candidate', only 'query'; .*remove_unused_columns"):
        collate([{"query": "P1"}])
    with pytest.raises(ValueError, match="1 of 2 rows have 'label'; give it in all or in none"):
        collate([row("P1", "P2", 1, sites=False), {"query": "P1", "candidate": "P2"}])
    short = row("P1", "P2", 1) | {"query_site_labels": [0, 1]}
    with pytest.raises(ValueError, match="query_site_labels of 'P1' has 2 values for 7 residues"):
        collate([short])
    plain = EmbeddingStore.create(tmp_path, TinyEsm())
    with pytest.raises(ValueError, match="keeps embeddings, no projections"):
        PairCollator(plain, kind="projections")


@pytest.mark.parametrize("workers", [0, 1])
def test_trainer_learns_and_evaluates(store: EmbeddingStore, tmp_path: Path, workers: int) -> None:
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("accelerate")
    from transformers import Trainer

    pairs = datasets.Dataset.from_list([row("P1", "P3", 1), row("P2", "P3", 0)] * 4)
    torch.manual_seed(0)
    model = PlasmaModel(PlasmaConfig(embedding_size=32, head_size=8))
    before = model.alignment_head.hidden.weight.detach().clone()
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            remove_unused_columns=False,
            max_steps=3,
            per_device_train_batch_size=3,
            per_device_eval_batch_size=3,
            dataloader_num_workers=workers,
            report_to=[],
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=pairs,
        eval_dataset=pairs,
        data_collator=PairCollator(store, by="id"),
    )
    trainer.train()
    assert not torch.equal(model.alignment_head.hidden.weight, before)
    assert trainer.evaluate()["eval_loss"] > 0
