"""Shards: the rows of an index, some hundreds a file, each there whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data.chunks import write_atomically
from ..data.sequences import BadRecord
from ..models.retrieval_index import ModelIdentity, record_features
from ..models.retrieval_record import RetrievalRecord, embed_records

BAD = b"plasma_hf_bad"


def shard_name(made_by: ModelIdentity, names: Iterable[tuple[str, str]]) -> str:
    """Name a shard after what is in it, so that one that is there need not be made again.

    Args:
        made_by: Model of its vectors.
        names: Id and sha of each record that it was to hold.
    """
    # The id of a model is only what it is called.
    content = json.dumps([made_by.weights, made_by.recipe, *names])
    return f"records-{hashlib.sha256(content.encode()).hexdigest()[:24]}.arrow"


def write_shard(
    path: Path, model: Any, records: Sequence[RetrievalRecord], residues_per_batch: int
) -> None:
    """Embed records and write those that can be; the others are noted with the reason."""
    good: list[dict[str, Any]] = []
    bad: list[tuple[str, str]] = []
    vectors = embed_records(model, records, residues_per_batch)
    for record, vector in zip(records, vectors, strict=True):
        if isinstance(vector, Tensor):
            good.append(_row(record, vector))
        else:
            bad.append((record.id, f"it cannot be embedded: {vector}"))
    width = len(good[0]["vector"]) if good else 0
    write_rows(path, good, width, bad)


def write_rows(
    path: Path,
    rows: Sequence[dict[str, Any]],
    width: int,
    bad: Sequence[tuple[str, str]] = (),
) -> None:
    """Write rows as a file that `datasets.Dataset.from_file` reads."""
    import pyarrow as pa
    from datasets import Dataset

    features = record_features(width)
    columns = {name: [row[name] for row in rows] for name in features}
    table = Dataset.from_dict(columns, features=features).data.table
    about = (table.schema.metadata or {}) | {BAD: json.dumps(list(bad)).encode()}
    table = table.replace_schema_metadata(about)

    def write(temporary: Path) -> None:
        with pa.ipc.new_stream(str(temporary), table.schema) as stream:
            stream.write_table(table)

    write_atomically(path, write)


def inspect_shard(path: Path) -> tuple[dict[str, int], int, list[BadRecord]]:
    """Give the number of records by kind, the width, and what could not be embedded."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_stream(file).read_all()
        kinds = table.column("kind").to_pylist()
        bad = json.loads(table.schema.metadata[BAD])
    counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    return counts, table.schema.field("vector").type.list_size, [BadRecord(*one) for one in bad]


def _row(record: RetrievalRecord, vector: Tensor) -> dict[str, Any]:
    return {
        "id": record.id,
        "kind": record.kind,
        "source": record.source,
        "residues": record.residues,
        "sha": record.sha,
        "vector": vector.numpy(),
    }
