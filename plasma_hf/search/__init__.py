"""Index proteins by their vectors, and search them."""

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
    "add_records",
    "build_index",
    "read_records",
    "remove_records",
]
