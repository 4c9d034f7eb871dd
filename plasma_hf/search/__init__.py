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

__all__ = [
    "Index",
    "IndexHeader",
    "IndexReport",
    "ModelFingerprint",
    "ProteinDatabase",
    "add_records",
    "build_index",
    "read_records",
    "remove_records",
]
