"""`plasma-hf calibrate`: what unrelated proteins reach, so that scores get bits and p-values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from . import common
from .common import Embedding, Loading, Skipped, fail, load_embedder, report, verb

if TYPE_CHECKING:
    from ..models.modeling_plasma import PlasmaModel


@verb()
def calibrate(
    skipped: Skipped,
    model: Annotated[str, Argument(metavar="MODEL", help="PLASMA model, or a backbone.")],
    file: Annotated[
        Path | None, Argument(metavar="[PROTEINS]", help="Proteins with their families.")
    ] = None,
    output: Annotated[
        Path | None, Option("--output", "-o", help="Folder of the calibrated model.")
    ] = None,
    pairs: Annotated[int, Option(min=100, help="Pairs that are measured.")] = 20_000,
    plot: Annotated[Path | None, Option(help="Draw the p-values held out: .png, .svg...")] = None,
    backbone: Annotated[str | None, Option(help="Backbone of a head without one.")] = None,
    family_column: Annotated[str | None, Option(help="In tables; family or id.")] = None,
    sequence_column: Annotated[str, Option(help="Column of sequences in tables.")] = "sequence",
    revision: common.Revision = None,
    device: common.Device = None,
    trust_remote_code: common.RemoteCode = False,
) -> None:
    r"""Measure what unrelated proteins reach with a model: its scores then have bits and p-values.

    MODEL is a folder or Hub id of a PLASMA model; one that reads plans reads posteriors from then
    on. Or it is a backbone, such as esm2-8m: PLASMA-PF over it is then kept in the cache of the
    Hub, and taken by --backbone from then on. PROTEINS are a few hundred proteins of many families,
    such as those that the model will meet: FASTA with the family after the id (>P00760 trypsin), or
    a table with the columns family and sequence. Without them, 300 bundled domains of SCOPe are
    taken.

    Proteins of one family are never taken as unrelated. One without a family counts as a family of
    its own; near relatives must then be left out. A tenth of the families is held out, to check.

    Examples:
      plasma-hf calibrate esm2-8m
      plasma-hf align query.fasta proteins.fasta --backbone esm2-8m

      plasma-hf calibrate head proteins.fasta --output calibrated
      plasma-hf calibrate head proteins.csv --family-column superfamily \
          --sequence-column seq --output calibrated --plot p_values.png
      plasma-hf align query.fasta proteins.fasta --model calibrated

    With a language model, which is downloaded at first use:
      plasma-hf calibrate head proteins.fasta --backbone esm2-650m --output calibrated
    """
    from ..backbones import bundled_aligner, is_backbone, kept_head, load_backbone, new_aligner
    from ..models.modeling_backbone import Backbone
    from ..search.calibration import UNRELATED, calibrate, unrelated_p_values

    head: PlasmaModel | None
    alone = backbone is None and is_backbone(model)
    if output is None and (not alone or bundled_aligner(model).is_dir()):
        why = f"{model} comes calibrated; " if alone else ""
        fail(f"{why}give --output, the folder of the calibrated model")
    file = file or UNRELATED
    proteins = _read(file, family_column, sequence_column, skipped)
    families = list(dict.fromkeys(family for family, _ in proteins))
    report(f"{len(proteins)} proteins of {len(families)} families")
    if len(families) < 12:
        fail(f"{file} has {len(families)} families; give 12 at least, of which 2 are held out")
    where = (revision, device, trust_remote_code)
    if alone:
        options: dict[str, Any] = {"device": device or common.best_device()}
        options |= {"revision": revision, "trust_remote_code": trust_remote_code}
        embedder = load_backbone(model, **options)
        head, output = new_aligner(embedder), output or kept_head(embedder)
    elif backbone is None:
        embedder, head = load_embedder(Embedding(model, *where))
    else:
        head = common.load_model(Loading(model, *where), "plasma", backbone)
        embedder = Backbone(head.backbone, head.processor)  # type: ignore[arg-type]
    assert head is not None and output is not None  # a model was asked for
    if head.config.reading != "posterior":
        head.config.reading, head.config.threshold = "posterior", 0.2
    output.mkdir(parents=True, exist_ok=True)  # refused now, if it cannot be written
    held_out = families[::10]
    measured = [one for one in proteins if one[0] not in held_out]
    calibrate(head, measured, embedder.embed, pairs)
    head.save_pretrained(output)
    embedder.processor.save_pretrained(output)
    p_values = unrelated_p_values(head, proteins, embedder.embed, held_out, pairs // 10)
    _report_share((p_values <= 0.05).mean(), len(p_values))
    if plot:
        from ..io.plot import plot_p_values

        plot_p_values(p_values, plot)
    report(f"{output} holds the model" + (f", which --backbone {model} takes" if alone else ""))


def _report_share(share: float, count: int) -> None:
    report(f"p <= 0.05 in {share:.3f} of {count} unrelated pairs with a protein held out")
    if not 0.02 <= share <= 0.1:
        report(
            "that is far from 0.05: do not rely on these p-values. Proteins of different families "
            "may be relatives, or too few; leave PROTEINS out for bundled ones"
        )


def _read(
    file: Path, family_column: str | None, sequence_column: str, skipped: Skipped
) -> list[tuple[str, str]]:
    """Read family and sequence of each protein; one that has no family has its id."""
    from ..io.sequences import read_sequences
    from ..models.protein import InvalidRecord, is_fasta, open_text

    def on_invalid(record: InvalidRecord) -> None:
        skipped.report(f"{file}: {record.id}: {record.reason}")

    if file.is_file() and is_fasta(file):
        with open_text(file) as lines:
            heads = [line.strip()[1:].split() for line in lines if line.strip()[:1] == ">"]
        families = {words[0]: words[1] for words in heads if len(words) > 1}
        found = read_sequences(file, on_invalid=on_invalid)
        return [(families.get(one.id, one.id), one.sequence or "") for one in found]
    said = ""
    for column in (family_column,) if family_column else ("family", "id"):
        try:
            found = read_sequences(file, column, sequence_column, on_invalid)
            return [(one.id, one.sequence or "") for one in found]
        except ValueError as error:  # the file has no such column, and says it of an id
            said = said or str(error)
    fail(said.replace("id_column", "family_column").replace("--id", "--family"))
