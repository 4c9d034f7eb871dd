"""Index proteins by their vectors, and search them."""

from __future__ import annotations

from ..models.retrieval_index import CandidateList, Index, IndexHeader, ModelIdentity
from ..models.retrieval_record import RetrievalRecord
from .index_writer import IndexReport, add_records, build_index, remove_records
from .records import read_records

__all__ = [
    "CandidateList",
    "Index",
    "IndexHeader",
    "IndexReport",
    "ModelIdentity",
    "RetrievalRecord",
    "add_records",
    "build_index",
    "read_records",
    "remove_records",
]
