"""A saved ProtAlign loads and embeds equally in a process that cannot import plasma_hf."""

import json

import pytest
import torch

from plasma_hf import ProtAlignModel
from plasma_hf.models.processing_protalign import ProtAlignProcessor
from plasma_hf.models.protein import read_structure
from tests.helpers.clients import run_fresh
from tests.helpers.structures import FULL, write_structure
from tests.test_protalign import SEQUENCES, whole_model

FRESH = """
import json, sys
sys.modules["plasma_hf"] = None  # any import of it now fails
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor

folder, file, again, sequences = *sys.argv[1:4], json.loads(sys.argv[4])
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    out = model(**processor(sequences=sequences, structures=[file] * len(sequences)))
model.save_pretrained(again)
processor.save_pretrained(again)
print(json.dumps({
    "config": type(config).__module__,
    "encoders": [type(model.sequence_encoder).__module__, type(model.structure_encoder).__module__],
    "sequences": out.sequence_features.tolist(),
    "structures": out.structure_features.tolist(),
    "embedded": model.embed_sequences(sequences).tolist(),
    "weights": model.explain_sequence(sequences[0]).tolist(),
}))
"""


@pytest.mark.slow
def test_a_saved_folder_needs_no_package(tmp_path):
    chain = [(name, FULL) for name in ("ALA", "GLY", "LYS", "SER", "TRP", "VAL")]
    file = write_structure(tmp_path / "one.pdb", {"A": chain})
    model = whole_model()
    model.save_pretrained(tmp_path / "saved")
    ProtAlignProcessor().save_pretrained(tmp_path / "saved")
    words = [tmp_path / "saved", file, tmp_path / "again", json.dumps(SEQUENCES)]
    fresh = json.loads(run_fresh(FRESH, words, tmp_path).splitlines()[-1])
    for module in (fresh["config"], *fresh["encoders"]):
        assert module.startswith("transformers_modules.")
    expected = model.embed_sequences(SEQUENCES)
    folded = model.embed_structures([read_structure(file)]).expand(len(SEQUENCES), -1)
    pairs = {"sequences": expected, "embedded": expected, "structures": folded}
    pairs["weights"] = model.explain_sequence(SEQUENCES[0])
    for name, wanted in pairs.items():
        torch.testing.assert_close(torch.tensor(fresh[name]), wanted, rtol=0, atol=1e-6)
    # What was saved by the remote code is as complete, and loads here with the package's classes.
    first, second = (
        {f.name: f.read_bytes() for f in (tmp_path / d).glob("*.py")} for d in ("saved", "again")
    )
    assert first == second and "pipeline_protein_retrieval.py" in first
    loaded = ProtAlignModel.from_pretrained(tmp_path / "again")
    torch.testing.assert_close(loaded.embed_sequences(SEQUENCES), expected, rtol=0, atol=1e-6)
