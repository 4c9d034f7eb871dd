"""Benchmarks of alignment and search as configurations of one data set of the Hub.

What their terms allow to be passed on: SCOPe domains, and reference alignments such as balifam's.
The sites of `plasma-hf evaluate sites` are `interpro_sites.py`.

    python datasets_scripts/benchmarks.py scope40 scope40/ --out scope40 --push org/benchmarks
    python datasets_scripts/benchmarks.py alignments balifam.json.gz --out balifam --license cc0-1.0
"""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

import datasets
import typer
from dataset_folder import (
    count_examples,
    digest_files,
    errors_reported_by,
    list_invalid,
    push_folder,
    report_and_exit,
    shell_command,
    write_card,
    write_parquet,
    write_report,
)

from plasma_hf.data import InvalidRecord
from plasma_hf.evaluation.run import read_reference_alignments
from plasma_hf.evaluation.scope40 import Scope40

TEXT = datasets.Value("string")
COLUMNS: dict[str, dict[str, tuple[Any, str]]] = {
    "scope40": {
        "id": (TEXT, "name of the domain"),
        "sequence": (TEXT, "one-letter residues"),
        "family": (TEXT, "SCOP family, `a.1.1.1`; empty where it is of no query's fold"),
    },
    "alignments": {
        **{name: (TEXT, f"name of protein {name}") for name in "ab"},
        **{f"seq_{name}": (TEXT, f"its sequence, of {name}") for name in "ab"},
        "pairs": ([[datasets.Value("int32")]], "residues that correspond, `[[i, j], ...]` from 0"),
        "identity": (datasets.Value("float32"), "share of them with the same letter"),
    },
}
"""Columns of each kind of benchmark: their type, and what they hold."""


class Benchmark(datasets.GeneratorBasedBuilder):
    """Build a data set of one benchmark, all of it in the split "test".

    Args:
        kind: "scope40" or "alignments".
        path: Folder of domains and labels, or file of reference alignments.
        name: Name of the configuration; that of the file.
        cache_dir: Folder for prepared data sets.

    Attributes:
        invalid: Records left out; filled while the data set is prepared.
    """

    def __init__(
        self,
        kind: Literal["scope40", "alignments"],
        path: str | PathLike[str],
        name: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        self.kind, self.path = kind, Path(path)
        self.invalid: list[InvalidRecord] = []
        name = name or self.path.name.partition(".")[0]
        state = digest_files([self.path]) if self.path.exists() else ""
        super().__init__(cache_dir, "benchmark", name, state)

    def _info(self) -> datasets.DatasetInfo:
        columns = {name: kind for name, (kind, _) in COLUMNS[self.kind].items()}
        return datasets.DatasetInfo(features=datasets.Features(columns))

    def _split_generators(
        self, dl_manager: datasets.DownloadManager
    ) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator("test")]

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        self.invalid.clear()
        yield from enumerate(self._domains() if self.kind == "scope40" else self._alignments())

    def _domains(self) -> Iterator[dict[str, Any]]:
        benchmark = Scope40.read(self.path)
        named = zip(benchmark.domains.ids, benchmark.domains.sequences, strict=True)
        for name, sequence in named:
            yield {"id": name, "sequence": sequence, "family": benchmark.families.get(name, "")}

    def _alignments(self) -> Iterator[dict[str, Any]]:
        for one in read_reference_alignments(self.path, self.invalid):
            told = {"a": one.names[0], "b": one.names[1], "identity": one.identity}
            told |= {"seq_a": one.query, "seq_b": one.candidate}
            yield told | {"pairs": one.pairs.tolist()}


def export(builder: Benchmark, out: str | PathLike[str], terms: str = "other") -> Path:
    """Write a data set as a folder of Parquet files with a card; `terms` are its licence.

    Raises:
        ValueError: If there is nothing in it, or it cannot be read.
    """
    out = write_parquet(builder, out)
    values = {"invalid": [vars(record) for record in builder.invalid]}
    write_report(out, values, list_invalid(builder.invalid))
    tags = ["biology", "protein", "benchmark"]
    name = {"license": terms, "tags": tags, "pretty_name": f"Benchmark: {builder.config.name}"}
    columns = [(name, told) for name, (_, told) in COLUMNS[builder.kind].items()]
    write_card(
        *(builder, out, "dataset_benchmark.md", name),
        columns=columns,
        source=builder.path.resolve().name,
        n_invalid=len(builder.invalid),
    )
    return out


def main(
    kind: Annotated[Literal["scope40", "alignments"], typer.Argument(help="Which benchmark.")],
    path: Annotated[Path, typer.Argument(help="Its folder or file.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")],
    name: Annotated[str | None, typer.Option(help="Configuration; the file's name.")] = None,
    terms: Annotated[
        str, typer.Option("--license", help="Licence, as the Hub names it.")
    ] = "other",
    push_to: Annotated[
        str | None, typer.Option("--push", metavar="ORG/NAME", help="Upload it to the Hub.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make it private there.")] = False,
) -> None:
    """Write a benchmark as Parquet with a card; others of the data set on the Hub stay.

    Records that cannot be used are named on standard error and in report.md, and the exit code
    is 2.

    Example: python datasets_scripts/benchmarks.py scope40 scope40/ --out scope40
    """
    with errors_reported_by("benchmarks"):
        builder = Benchmark(kind, path, name)
        export(builder, out, terms)
        if push_to:
            push_folder(out, push_to, private)
    lines = [f"{record.id}: {record.reason}" for record in builder.invalid]
    total = sum(count_examples(builder).values())
    report_and_exit([*lines, f"{out}: {total}; {len(lines)} left out"], bool(lines))


command = shell_command(main)

if __name__ == "__main__":
    command()
