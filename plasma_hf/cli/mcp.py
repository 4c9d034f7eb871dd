"""`plasma-hf mcp`: alignment, search and site transfer as tools of an agent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, wraps
from importlib import import_module
from pathlib import Path
from typing import Any

from .common import Skipped, verb
from .database import open_database

MOST_HITS = 50


def align(query: str, candidate: str, database_size: int = 1) -> dict[str, Any]:
    """Align two proteins: which residues correspond, and is that more than chance?

    Use it to compare two proteins residue by residue. Believe the evalue: below 0.01 the two are
    related; `segments` is empty where nothing is significant, which does not prove that they are
    unrelated.

    Args:
        query: One-letter sequence, or path of a FASTA, PDB or mmCIF file; where it holds several,
            path:record or path:chain.
        candidate: The other protein, likewise.
        database_size: How many proteins the candidate was picked from.

    Returns:
        score (0 to 1), bits, p_value, evalue, and segments, each with its significance and pairs
        [query residue, candidate residue, probability]; residues are named by the authors of a
        structure (A:57), else by place, from 1.
    """
    return told(_pipeline()((query, candidate), database_size=database_size))


def search(
    query: str, database: str, evalue: float = 0.01, top_k: int = 10, sensitivity: str = "default"
) -> dict[str, Any]:
    """Search a database of proteins with a protein, and align it with what is found.

    Use it to find relatives of a protein. Hits are sorted, the most significant first; those of
    iteration 2 were found by a profile of the query and those of iteration 1.

    Args:
        query: One-letter sequence, or path of a FASTA, PDB or mmCIF file (path:record, path:chain).
        database: Path of a FASTA file, of a folder of structures, or of a folder that
            `plasma-hf database build` made.
        evalue: Hits that chance gives, at most, with each hit.
        top_k: How many hits at most, 50 or less.
        sensitivity: How many candidates are compared: fast, default, more or all.

    Returns:
        hits, each as `align` returns it; searched, the number of proteins; left_out, what of the
        database could not be read.
    """
    proteins, left_out = _open(database)
    options = {"evalue": evalue, "sensitivity": sensitivity, "top_k": min(top_k, MOST_HITS)}
    [hits] = proteins.search([query], _pipeline(), **options)
    return {"hits": list(map(told, hits)), "searched": len(proteins), "left_out": left_out}


def transfer_site(
    query: str, residues: str, database: str, evalue: float = 0.01, top_k: int = 10
) -> dict[str, Any]:
    """Find the residues of an active or binding site of one protein in other proteins.

    Use it if you know a few residues that matter, and want their counterparts elsewhere. The evalue
    is that of the site, whatever else the proteins have in common. A site whose residues come in
    another order along the sequence is out of reach.

    Args:
        query: The protein that has the site: sequence, or path (path:record, path:chain).
        residues: Its residues, such as H57,D102,S195 or A:57; numbers are those of the authors of a
            structure, else count from 1. Letters are checked.
        database: Path of a FASTA file, a folder of structures, or a database.
        evalue: Hits that chance gives, at most, with each hit.
        top_k: How many hits at most, 50 or less.

    Returns:
        hits, each with candidate, p_value, evalue, kept (residues of the same kind) and pairs
        [query residue, candidate residue, probability]; searched; left_out.
    """
    from ..search.sites import transfer_sites

    proteins, left_out = _open(database)
    [hits] = transfer_sites(query, [residues], proteins, _pipeline(), evalue, len(proteins))
    found = [told_of_site(hit) for hit in hits[: min(top_k, MOST_HITS)]]
    return {"hits": found, "searched": len(proteins), "left_out": left_out}


TOOLS: tuple[Callable[..., dict[str, Any]], ...] = (align, search, transfer_site)


def told(result: Any) -> dict[str, Any]:
    """Return what an agent is told of a result: residues by their names."""
    names = [result.residues(side) for side in ("query", "candidate")]

    def named(segment: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: segment[name] for name in ("score", "bits", "p_value", "evalue")}
        pairs = ((names[0][i], names[1][j], round(p, 3)) for i, j, p in segment["pairs"])
        return kept | {"pairs": [list(pair) for pair in pairs]}

    about = {"query": result.query.id, "candidate": result.candidate.id}
    names_told = ("score", "bits", "p_value", "evalue", "iteration")
    about |= {name: result[name] for name in names_told if name in result}
    return about | {"segments": [named(segment) for segment in result["segments"]]}


def told_of_site(hit: Any) -> dict[str, Any]:
    """Return what an agent is told of a protein that has a site."""
    about = {"candidate": hit.candidate.id, "p_value": hit["p_value"], "evalue": hit["evalue"]}
    return about | {"kept": hit.kept, "pairs": [list(pair) for pair in hit.correspondences]}


@cache
def _pipeline() -> Any:
    from ..search.database import default_pipeline

    return default_pipeline()


def _open(database: str) -> tuple[Any, list[str]]:
    skipped = Skipped(silent=True)
    if not Path(database).exists():
        raise FileNotFoundError(f"there is no file or folder {database!r}")
    return open_database(Path(database), skipped), list(skipped.told)


def server() -> Any:
    """Return the server with its tools.

    Raises:
        ImportError: If mcp is missing.
    """
    try:
        made = import_module("mcp.server.mcpserver")
        refusal = import_module("mcp.server.mcpserver.exceptions").ToolError
    except ImportError as error:
        raise ImportError('this needs mcp 2: pip install "plasma-hf[mcp]"') from error
    serving = made.MCPServer("plasma-hf", instructions="Compare proteins residue by residue.")
    for tool in TOOLS:
        serving.tool()(_refusing(tool, refusal))
    return serving


def _refusing(tool: Callable[..., Any], refusal: type[Exception]) -> Callable[..., Any]:
    """Let an agent read what is wrong with its call."""

    @wraps(tool)
    def run(*given: Any, **named: Any) -> Any:
        try:
            return tool(*given, **named)
        except (ValueError, TypeError, OSError, ImportError) as error:
            raise refusal(str(error)) from error

    return run


@verb(quiet=True)
def mcp(skipped: Skipped) -> None:
    """Serve align, search and transfer_site to an agent, over standard input and output.

    Needs the extra mcp: pip install "plasma-hf[mcp]". Tools read files of this machine.

    In the configuration of a client:
      {"mcpServers": {"plasma-hf": {"command": "plasma-hf", "args": ["mcp"]}}}
    """
    server().run("stdio")
