"""Negatives from all ranks: two and four processes update as one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plasma_hf.training.distributed import gather_ranks
from tests.conftest import GOLDEN as SUBSET
from tests.helpers.contrastive_ranks import LOSSES, PAIRS, train

pytestmark = pytest.mark.slow

JOB, ROOT = Path(__file__).parent / "helpers" / "contrastive_ranks.py", Path(__file__).parents[1]
GOLDEN = [SUBSET / "contrastive" / f"{name}.safetensors" for name in ("N7", "N64")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where two and four ranks wrote what they came to."""
    folder = tmp_path_factory.mktemp("ranks")
    words = [JOB, folder, *GOLDEN]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(params=[2, 4])
def shared(request, folder):
    return load_file(folder / f"{request.param}.safetensors")


@pytest.fixture(scope="module")
def alone():
    """What one process comes to, before and after it is trained."""
    return {name: train(fields, slice(0, PAIRS), False) for name, fields in LOSSES.items()}


@pytest.mark.parametrize("way", ["equal", "unequal"])
@pytest.mark.parametrize("name", LOSSES)
def test_ranks_update_as_one_process(shared, alone, name, way):
    moved = 0.0
    untrained = train(LOSSES[name], slice(0, 2), False)  # another update, from the same weights
    for key, value in alone[name].items():
        difference = (shared[f"{name}/{way}/{key}"] - value).abs().max()
        assert difference < 1e-6, key
        moved = max(moved, float((value - untrained[key]).abs().max()))
    assert moved > 1e-3


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_ranks_have_the_reference_gradient(shared, golden, path, kind):
    expected = load_file(path)
    for key in ("loss", "grad_x", "grad_y"):
        found, wanted = shared[f"{path.stem}/{kind}/{key}"], expected[f"{kind}.f64.{key}"]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


def test_without_ranks_nothing_is_fetched():
    vectors = torch.randn(3, 4)
    gathered = gather_ranks(vectors)
    assert gathered.vectors is vectors
    assert (gathered.start, gathered.ranks) == (0, 1)
