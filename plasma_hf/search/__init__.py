"""Index proteins by their vectors, and search them."""

from __future__ import annotations

from ..models.pipeline_protein_retrieval import CandidateList
from ..models.protein import Protein
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

RetrievalRecord = Protein.of  # as proteins were called here before

__all__ = [
    "CandidateList",
    "Index",
    "IndexHeader",
    "IndexReport",
    "ModelFingerprint",
    "RetrievalRecord",
    "add_records",
    "build_index",
    "read_records",
    "remove_records",
]
