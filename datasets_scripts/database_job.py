# /// script
# requires-python = ">=3.11"
# dependencies = ["plasma-hf[search,train]"]
# ///
"""Build a database from the proteins of a data set and push it, here or as a job of the Hub.

    uv run datasets_scripts/database_job.py org/proteins org/database
    hf jobs uv run --flavor l4x1 --secrets HF_TOKEN datasets_scripts/database_job.py \
        org/proteins org/database --model org/plasma-esm2-8m

From there it is downloaded and searched:

    hf download org/database --repo-type dataset --local-dir database
    plasma-hf search queries.fasta database --model org/plasma-esm2-8m

A model gives each protein a vector by which remote relatives are found; it is one that
`plasma-hf calibrate` made and `plasma_hf.push` uploaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from datasets import load_dataset
from huggingface_hub import CommitInfo, DatasetCard, DatasetCardData, HfApi
from transformers import pipeline

import plasma_hf
from plasma_hf.io.sequences import read_sequences
from plasma_hf.search import ProteinDatabase

TEXT = """
# Protein database

{proteins} proteins, {residues} residues, of `{source}`{vectors}, to be searched residue by residue:

```bash
hf download {target} --repo-type dataset --local-dir database
plasma-hf search queries.fasta database{option}
```
"""


def main(
    source: Annotated[str, typer.Argument(help="Data set of the Hub, or a file of proteins.")],
    target: Annotated[str, typer.Argument(help="Data set to push to, made if need be.")],
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    id_column: Annotated[str, typer.Option(help="Column of ids.")] = "id",
    sequence_column: Annotated[str, typer.Option(help="Column of sequences.")] = "sequence",
    model: Annotated[str | None, typer.Option(help="PLASMA model that gives vectors.")] = None,
    public: Annotated[bool, typer.Option("--public", help="For all to see.")] = False,
) -> CommitInfo:
    """Build a database and push it; rows that are no protein are left out with a warning."""
    plasma_hf.register()
    rows: Any = source
    if not os.path.exists(source):
        rows = load_dataset(source, split=split, streaming=True)
    with TemporaryDirectory() as scratch:
        proteins = read_sequences(rows, id_column, sequence_column)
        database = ProteinDatabase.build(scratch, proteins)
        if model is not None:
            database.add_vectors(pipeline("protein-alignment", model=model))
        about = {"proteins": len(database), "residues": database.residues, "target": target}
        about |= {"vectors": f", with vectors by `{model}`" if model else ""}
        about |= {"option": f" --model {model}" if model else ""}
        data = DatasetCardData(tags=["biology", "protein"], viewer=False)
        text = TEXT.format(source=Path(source).name if rows is source else source, **about)
        DatasetCard(f"---\n{data}\n---\n{text}").save(Path(scratch, "README.md"))
        api = HfApi()
        api.create_repo(target, repo_type="dataset", private=not public, exist_ok=True)
        pushed = {"repo_id": target, "folder_path": scratch, "repo_type": "dataset"}
        return api.upload_folder(**pushed, ignore_patterns=["*.lock"], delete_patterns=["part-*"])


if __name__ == "__main__":
    typer.run(main)
