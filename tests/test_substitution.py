"""The substitution encoder and its tokenizer."""

import numpy as np
import pytest
import torch
from Bio.Align import substitution_matrices
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel

from plasma_hf import SubstitutionConfig, SubstitutionModel
from plasma_hf.models.modeling_backbone import residue_vectors
from plasma_hf.models.processing_plasma import substitution_tokenizer
from plasma_hf.models.protein import LETTER_RULES, RESIDUE_LETTERS, STANDARD_RESIDUES

TOKENIZER = substitution_tokenizer()
MODEL = SubstitutionModel(SubstitutionConfig()).eval()


def embed(sequence):
    return MODEL(torch.tensor([TOKENIZER(sequence).input_ids])).last_hidden_state[0]


def test_vectors_rebuild_blosum62_but_for_clipped_eigenvalues():
    matrix = substitution_matrices.load("BLOSUM62")
    wanted = np.array([[matrix[a][b] for b in STANDARD_RESIDUES] for a in STANDARD_RESIDUES])
    vectors = residue_vectors()[[1 + RESIDUE_LETTERS.index(r) for r in STANDARD_RESIDUES]]
    values, axes = np.linalg.eigh(wanted)
    clipped = (axes * np.clip(values, 0, None)) @ axes.T
    np.testing.assert_allclose(vectors @ vectors.T, clipped, atol=1e-4)


def test_letters_outside_the_twenty_are_means():
    vector = dict(zip(RESIDUE_LETTERS, residue_vectors()[1:], strict=True))
    for letter, meanings in LETTER_RULES.items():
        mean = np.mean([vector[m] for m in meanings], axis=0)
        np.testing.assert_allclose(vector[letter], mean, atol=1e-6)
    assert not residue_vectors()[0].any()


def test_the_window_in_words():
    sequence = "ACDEFGHIKLMNPQ"
    hidden = embed(sequence).reshape(len(sequence), 21, 20)
    vectors = residue_vectors()
    for i in (0, 5, 13):
        for k in (-10, -3, 0, 2, 10):
            inside = 0 <= i + k < len(sequence)
            row = vectors[1 + RESIDUE_LETTERS.index(sequence[i + k])] if inside else np.zeros(20)
            np.testing.assert_allclose(
                hidden[i, k + 10].detach(), row * np.exp(-((k / 7) ** 2) / 2), atol=1e-6
            )


@given(st.text(alphabet=RESIDUE_LETTERS + RESIDUE_LETTERS.lower(), min_size=1, max_size=40))
def test_one_token_a_letter_whatever_its_case(sequence):
    ids = TOKENIZER(sequence).input_ids
    assert len(ids) == len(sequence) and ids == TOKENIZER(sequence.upper()).input_ids
    assert TOKENIZER.decode(ids) == sequence.upper()


def test_padding_changes_nothing():
    batch = TOKENIZER(["MKVLA", "MKVLAMKVLA"], padding=True, return_tensors="pt")
    hidden = MODEL(**batch).last_hidden_state
    assert torch.equal(hidden[0, :5], embed("MKVLA"))
    assert torch.equal(
        MODEL(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state, hidden
    )


def test_saved_and_loaded_by_the_auto_classes(tmp_path):
    model = SubstitutionModel(SubstitutionConfig(window=3, decay=2))
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).hidden_size == 140
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.vectors, model.vectors)
    assert not list(loaded.parameters())


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"window": -1}, "window=-1; give 0 or more"),
        ({"decay": 0}, "decay=0; give a number above 0"),
    ],
)
def test_windows_that_cannot_be(options, told):
    with pytest.raises(ValueError, match=told):
        SubstitutionConfig(**options)
