"""Shared fixtures: no network, quiet transformers, golden data where it is, tiny models."""

import os

# Read at import of huggingface_hub, hence before anything else here.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from pathlib import Path

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read at import of triton

from transformers import EsmConfig, EsmTokenizer, pipeline
from transformers.utils import logging

from plasma_hf import PlasmaConfig, PlasmaModel, PlasmaProcessor

# On a machine that others use too, how long an example takes says nothing. CI judges a change by
# the same examples each time; elsewhere hypothesis looks for new ones.
settings.register_profile("project", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("project")

logging.disable_progress_bar()
logging.set_verbosity_error()
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Seed torch, so that what a fixture draws does not depend on the tests before."""
    torch.manual_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    """Seed torch again, otherwise: a test draws what its fixtures did not, and always the same."""
    torch.manual_seed(1)


CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
SHARED = Path(__file__).parents[2] / "shared" / "data"
GOLDEN = Path(__file__).parent / "golden"
"""A subset of the reference tensors, part of the repository; all of them are in `SHARED`."""


def pytest_collection_modifyitems(items):
    """Mark what compares with reference tensors."""
    for item in items:
        if {"golden", "full_golden"} & set(item.fixturenames):
            item.add_marker(pytest.mark.parity)


@pytest.fixture(scope="session")
def golden():
    """Folder of reference tensors computed with the original implementation; never absent."""
    assert (GOLDEN / "plasma_heads" / "cases.json").is_file(), f"{GOLDEN} is incomplete"
    return SHARED / "golden" if (SHARED / "golden").is_dir() else GOLDEN


@pytest.fixture(scope="session")
def full_golden():
    """The same, whole: with what is too large for the repository."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("not all reference tensors (../shared/data/golden) are beside this clone")
    return SHARED / "golden"


@pytest.fixture(scope="session")
def align():
    """The default pipeline."""
    return pipeline("protein-alignment")


@pytest.fixture(scope="session")
def tiny_esm(tmp_path_factory):
    """A small random ESM under a learnt head, with a processor that adds special tokens."""
    letters = "LAGVSERTIDPKQNFYMHWCXBUZO"
    vocabulary = tmp_path_factory.mktemp("esm") / "vocab.txt"
    vocabulary.write_text("\n".join(["<cls>", "<pad>", "<eos>", "<unk>", *letters, "<mask>"]))
    torch.manual_seed(0)
    backbone = EsmConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        position_embedding_type="rotary",
        pad_token_id=1,
        mask_token_id=29,
    )
    model = PlasmaModel(PlasmaConfig(plm_config=backbone, head_size=8)).eval()
    return model, PlasmaProcessor(EsmTokenizer(str(vocabulary)))


@pytest.fixture
def open_page(tmp_path):
    """Open a page at a width; gives the browser."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (CHROMIUM.exists() and DRIVER.exists()):
        pytest.skip(f"there is no {CHROMIUM} or no {DRIVER}: apt-get install chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for (
        name
    ) in "headless=new no-sandbox enable-unsafe-swiftshader disable-quic no-first-run".split():
        options.add_argument(f"--{name}")
    for name in ("background-networking", "component-update", "sync", "dev-shm-usage"):
        options.add_argument(f"--disable-{name}")
    options.add_argument(f"--user-data-dir={tmp_path / 'chromium'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(str(DRIVER)))

    def open_at(address, width):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(address)
        return browser

    yield open_at
    browser.quit()
