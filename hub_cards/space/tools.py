"""What the page offers to programs and agents: align, search, transfer_site."""

from __future__ import annotations

from functools import cache
from typing import Any

from read_inputs import read_database, read_input
from transformers import pipeline

import plasma_hf
from plasma_hf.cli.mcp import told, told_of_site
from plasma_hf.search.sites import transfer_sites


@cache
def aligner() -> Any:
    """Load the bundled PLASMA model."""
    return pipeline("protein-alignment", model=plasma_hf.DEFAULT_CHECKPOINT)


def align(query: str, candidate: str, database_size: int = 1) -> dict[str, Any]:
    """Align two proteins: which residues correspond, and is that more than chance?

    Believe the evalue: below 0.01 the two are related. `segments` is empty where nothing is
    significant, which does not prove that they are unrelated.

    Args:
        query: One-letter sequence, or FASTA text of one protein.
        candidate: The other protein, likewise.
        database_size: How many proteins the candidate was picked from.
    """
    proteins = read_input(query, None, "", "query"), read_input(candidate, None, "", "candidate")
    return told(aligner()(proteins, database_size=int(database_size)))


def search(query: str, proteins: str, evalue: float = 0.01) -> dict[str, Any]:
    """Search proteins with a protein, and align it with those that are related to it.

    Args:
        query: One-letter sequence, or FASTA text of one protein.
        proteins: FASTA text of the proteins to search, 1,000 at most.
        evalue: Hits that chance gives, at most, with each hit.
    """
    database, left_out = _database(proteins)
    given = [read_input(query, None, "", "query")]
    [hits] = database.search(given, aligner(), evalue=float(evalue), sensitivity="all")
    return {"hits": list(map(told, hits)), "searched": len(database), "left_out": left_out}


def transfer_site(query: str, residues: str, proteins: str, evalue: float = 0.01) -> dict[str, Any]:
    """Find the residues of an active or binding site of one protein in other proteins.

    The evalue is that of the site, whatever else the proteins have in common.

    Args:
        query: One-letter sequence, or FASTA text, of the protein that has the site.
        residues: Its residues with their letters, counted from 1, such as H57,D102,S195.
        proteins: FASTA text of the proteins to search, 1,000 at most.
        evalue: Hits that chance gives, at most, with each hit.
    """
    database, left_out = _database(proteins)
    protein, options = read_input(query, None, "", "query"), (float(evalue), len(database))
    [hits] = transfer_sites(protein, [residues], database, aligner(), *options)
    return {"hits": list(map(told_of_site, hits)), "searched": len(database), "left_out": left_out}


def _database(proteins: str) -> Any:
    if not proteins.strip():
        raise ValueError("give the proteins to search as FASTA text.")
    return read_database(proteins, None)


TOOLS = (align, search, transfer_site)
