"""An exported model loads as a MultiVectorEncoder where plasma_hf is not installed."""

import json

import pytest
import torch
from sentence_transformers import MultiVectorEncoder
from transformers import pipeline

import plasma_hf
from plasma_hf.hub.card import model_card
from plasma_hf.models.multi_vector import ResidueVectors
from plasma_hf.models.processing_plasma import InputFormat
from tests.helpers.clients import run_fresh

QUERIES = ["MKTAYIAKQRQISFVKSHFSRQLEERLGLIEV", "ACDEFGHIKLMNPQRSTVWY"]
DOCUMENTS = ["AYIAKQRQLSFVKSHFSRQ", "GSHMASMTGGQQMGRGS", "MKV"]

NAMES = ("near", "plasma_head_motif")

FRESH = """
import json, sys
sys.modules["plasma_hf"] = None  # any import of it now fails
from sentence_transformers import MultiVectorEncoder

names, queries, documents = map(json.loads, sys.argv[1:])

def trip(name):
    encoder = MultiVectorEncoder(name, trust_remote_code=True)
    scores = encoder.similarity(encoder.encode_query(queries), encoder.encode_document(documents))
    encoder.save_pretrained(name + " again")
    again = MultiVectorEncoder(name + " again", trust_remote_code=True)
    same = again.similarity(again.encode_query(queries), again.encode_document(documents))
    return [scores.tolist(), same.tolist(), encoder.get_embedding_dimension()]

print(json.dumps({name: trip(name) for name in names}))
"""


@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    """Export aligners; return the folder, the pipelines, and what a process made of them."""
    folder, aligners = tmp_path_factory.mktemp("trip"), {}
    for name in NAMES:
        given = {"backbone": name} if name == "near" else {"model": f"plasma_hf/checkpoints/{name}"}
        aligners[name] = align = pipeline("protein-alignment", **given)
        plasma_hf.export_to_hub_folder(align.model, align.processor, folder / name)
    printed = run_fresh(FRESH, map(json.dumps, (NAMES, QUERIES, DOCUMENTS)), folder)
    return folder, aligners, json.loads(printed.splitlines()[-1])


def max_sim(align, queries, documents):
    """Add up the highest cosine of each query residue, along the axes of the model."""
    model, sides = align.model, []
    for given in (queries, documents):
        projected = align.project([align.read((one, one))["query"] for one in given])
        own = [one[:, :-3] if model.knows_background else one for one in projected]
        sides.append([torch.nn.functional.normalize(one, dim=-1) for one in own])
    return torch.tensor([[(q @ d.T).amax(1).sum() for d in sides[1]] for q in sides[0]])


@pytest.mark.parametrize("name", NAMES)
def test_folder_is_a_multi_vector_encoder(trip, name):
    folder, align, (scores, same, width) = trip[0], trip[1][name], trip[2][name]
    own = max_sim(align, QUERIES, DOCUMENTS)
    torch.testing.assert_close(torch.tensor(scores), own, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.tensor(same), own, atol=1e-5, rtol=1e-5)
    assert width == len(align.model.background.weights)
    assert "multi-vector" in model_card(folder / name).data.tags


def test_batches_do_not_change_vectors():
    aligner = plasma_hf.load_aligner("substitution")
    encoder = MultiVectorEncoder(modules=[ResidueVectors(aligner, plasma_hf.PlasmaProcessor())])
    together = encoder.encode_document(DOCUMENTS)
    for one, alone in zip(together, map(encoder.encode_document, DOCUMENTS), strict=True):
        torch.testing.assert_close(one, alone)
        torch.testing.assert_close(one.norm(dim=-1), torch.ones(len(one)))


def test_what_cannot_be_read_is_refused():
    aligner, processor = plasma_hf.load_aligner("substitution"), plasma_hf.PlasmaProcessor()
    processor.input_format = InputFormat("short", max_residues=5)
    encoder = MultiVectorEncoder(modules=[ResidueVectors(aligner, processor)])
    with pytest.raises(ValueError, match="a protein of 19 residues"):
        encoder.encode_query(DOCUMENTS[0])
    with pytest.raises(ValueError, match="1"):
        encoder.encode_query("MK1")
