"""`plasma-hf site`: a few residues of one protein, found in many others."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from . import common
from .align import read_side
from .common import Computing, Skipped, fail, report, verb, write
from .database import open_database

if TYPE_CHECKING:
    from ..models.protein import Protein
    from ..search.database import ProteinDatabase


@verb()
def site(
    skipped: Skipped,
    database: Annotated[Path, Option("--database", "-d", help="Database, or file or folder.")],
    query: Annotated[str | None, Argument(help="Protein that has the site.")] = None,
    *,
    residues: Annotated[
        list[str] | None,
        Option("--residues", "-r", metavar="LIST", help="H57,D102,S195, or a file."),
    ] = None,
    motif: Annotated[
        list[str] | None, Option(metavar="PATTERN", help="Of PROSITE, where QUERY has it.")
    ] = None,
    evalue: Annotated[float, Option(min=0, help="Highest E-value to show.")] = 0.01,
    database_size: Annotated[
        int | None, Option(min=1, help="Proteins that E-values count; the database's by default.")
    ] = None,
    top_k: Annotated[int | None, Option(min=1, help="Hits of each site; all by default.")] = None,
    output_format: common.OutputFormat = "text",
    output: common.OutputFile = None,
    computing: Computing,
    quiet: common.Quiet = False,
) -> None:
    r"""Find the residues of a site in other proteins: active sites, binding sites, motifs.

    QUERY is a protein that has the site: a sequence, or a FASTA, PDB or mmCIF file, FILE:RECORD or
    FILE:CHAIN. Its residues are named by the numbers of a structure's authors, else from 1:
    H57,D102, A:57, A:H57, ranges 57-60, insertion codes 186A; letters are checked. --residues can
    be repeated, or a file with a list in each line, behind a name and a tab. --motif takes a
    pattern of PROSITE instead: its residues, but for x, are a site at each place where the query
    has it; without QUERY the first protein of the database that has it is the example.

    Every protein of the database is compared, whatever else it has in common with the query. A site
    may lie scattered along the sequence, in order; the E-value is that of the site. A protein that
    has the same residues in another order is out of reach.

    Examples:
      plasma-hf site demo/structures/2cga_B.pdb.gz --residues H57,D102,S195 \
          --database demo/structures
      plasma-hf site demo/serine_proteases.fasta:P00766 --residues sites.tsv \
          --database proteins --format tsv --output sites.hits.tsv
      plasma-hf site --motif '[LIVM]-[ST]-A-[STAG]-H-C' --database demo/structures
    """
    from tqdm import tqdm

    from ..search.sites import Site, transfer_sites

    common.check_output(output, query, database, *(residues or []))
    if not residues and not motif:
        fail("give the site: --residues H57,D102,S195, or --motif PATTERN")
    if query is None and residues:
        fail("--residues are those of a QUERY; give the protein that has them")
    proteins = [] if query is None else read_side(query, "query", skipped)
    if len(proteins) != 1 and query is not None:
        fail(f"{query} holds {len(proteins)} proteins; name one, as FILE:RECORD or FILE:CHAIN")
    found = open_database(database, skipped)
    one = proteins[0] if proteins else _example(found, motif or [])
    told = skipped.report
    sites = [site for given in residues or [] for site in Site.read(given, one, told)]
    sites += [site for given in motif or [] for site in Site.of_pattern(given, one)]
    align = computing.load()
    every = tqdm(found, unit="protein", disable=quiet or None)
    given: dict[str, Any] = {"evalue": evalue, "database_size": database_size or len(found)}
    hits = transfer_sites(one, sites, every, align, **given)
    for site, of_site in zip(sites, hits, strict=True):
        if not of_site and not quiet:
            report(f"{site.name}: no significant hit among {len(found)} proteins")
    write(_written([of_site[:top_k] for of_site in hits], output_format), output)


def _example(database: ProteinDatabase, patterns: list[str]) -> Protein:
    """Return the first protein that has all patterns; they are looked for as they are in it."""
    from ..search.sites import compile_pattern

    wanted = [compile_pattern(one)[0] for one in patterns]
    for protein in map(database.__getitem__, range(len(database))):
        if all(one.search(protein.sequence or "") for one in wanted):
            report(f"{protein.id} is the example of {' and '.join(patterns)}")
            return protein
    fail(f"no protein searched has {' and '.join(patterns)}; give QUERY, one that has it")


def _written(hits: Sequence[Sequence[Any]], form: str) -> Iterator[str]:
    """Write the hits of each site as lines."""
    from ..search.sites import SITE_FIELDS

    if form == "tsv":
        text = io.StringIO()
        rows = csv.DictWriter(text, SITE_FIELDS, delimiter="\t", lineterminator="\n")
        rows.writeheader()
        rows.writerows(hit.row() for of_site in hits for hit in of_site)
        yield text.getvalue()
        return
    for of_site in hits:
        if of_site and form == "text":
            yield f"site {of_site[0]['site']} of {of_site[0].query.id}\n"
        for hit in of_site:
            yield hit.to_string("json") if form == "json" else f"  {hit}\n"
