"""Proteins with their vectors as a table that other engines read: Parquet or Lance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow

    from ..models.protein import Protein
    from .store import Embedder

ENDINGS = (".parquet", ".lance")
"""What the names of tables end in."""


def table_schema(width: int) -> pyarrow.Schema:
    """Return the columns: id, sequence, mean of the residue embeddings, and all of them."""
    arrow: Any = import_module("pyarrow")
    mean, residue = (arrow.list_(of, width) for of in (arrow.float32(), arrow.float16()))
    columns = {"id": arrow.string(), "sequence": arrow.string(), "mean": mean}
    return arrow.schema(columns | {"residues": arrow.list_(residue)})


def embedded_rows(ids: Sequence[str], sequences: Sequence[str], embedder: Embedder) -> Any:
    """Embed some proteins, and return them as rows of the table.

    Example:
        >>> from plasma_hf import load_backbone
        >>> rows = embedded_rows(["a"], ["MKTAYIAKQR"], load_backbone("substitution"))
        >>> len(rows["residues"][0]), len(rows["mean"][0])
        (10, 420)
    """
    arrow: Any = import_module("pyarrow")
    schema = table_schema(embedder.hidden_size)
    embedded = [one.float().cpu().numpy() for one in embedder.embed(sequences)]
    mean = np.concatenate([one.mean(0) for one in embedded])
    residues = np.concatenate(embedded).astype(np.float16)
    starts = np.cumsum([0, *map(len, embedded)], dtype=np.int32)
    kind = schema.field("residues").type
    vectors = arrow.FixedSizeListArray.from_arrays(
        arrow.array(residues.ravel()), type=kind.value_type
    )
    columns = [
        arrow.array(ids),
        arrow.array(sequences),
        arrow.FixedSizeListArray.from_arrays(arrow.array(mean), type=schema.field("mean").type),
        arrow.ListArray.from_arrays(arrow.array(starts), vectors, type=kind),
    ]
    return arrow.Table.from_arrays(columns, schema=schema)


def write_table(
    path: str | Path, proteins: Iterable[Protein], embedder: Embedder, together: int = 64
) -> int:
    """Embed proteins and write them as they come, and return how many they are.

    Args:
        path: File or folder to make, `.parquet` or `.lance` (package pylance).
        together: Proteins embedded at a time; what is written does not depend on it.

    Raises:
        ValueError: If the path has another ending.
        ImportError: If pylance is missing.
    """
    path = Path(path)
    schema, written = table_schema(embedder.hidden_size), 0
    rest = iter(proteins)

    def tables() -> Iterator[Any]:
        nonlocal written
        while some := list(islice(rest, together)):
            sequences = [one.sequence or "" for one in some]
            yield embedded_rows([one.id for one in some], sequences, embedder)
            written += len(some)

    if path.suffix == ".lance":
        write_lance(path, schema, tables())
    elif path.suffix == ".parquet":
        parquet = import_module("pyarrow.parquet")
        part = path.with_name(f"{path.name}.writing")
        with parquet.ParquetWriter(part, schema) as writer:
            for table in tables():
                writer.write_table(table)
        part.replace(path)
    else:
        raise ValueError(f"{path} is no table; give a name that ends in .parquet or .lance.")
    return written


def write_lance(path: Path, schema: pyarrow.Schema, tables: Iterable[pyarrow.Table]) -> None:
    """Write tables of a schema as they come."""
    arrow: Any = import_module("pyarrow")
    try:
        lance: Any = import_module("lance")
    except ImportError as error:
        raise ImportError("Lance needs pylance: pip install pylance") from error
    batches = (batch for table in tables for batch in table.cast(schema).to_batches())
    lance.write_dataset(arrow.RecordBatchReader.from_batches(schema, batches), str(path))
