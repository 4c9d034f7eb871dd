"""Search proteins: residue by residue, or by their vectors."""

from .database import ProteinDatabase
from .index import (
    Index,
    IndexHeader,
    IndexReport,
    ModelFingerprint,
    add_records,
    build_index,
    read_records,
    remove_records,
)
from .sites import Site, SiteHit, transfer_sites

__all__ = [
    "Index",
    "IndexHeader",
    "IndexReport",
    "ModelFingerprint",
    "ProteinDatabase",
    "Site",
    "SiteHit",
    "add_records",
    "build_index",
    "read_records",
    "remove_records",
    "transfer_sites",
]
