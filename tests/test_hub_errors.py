"""Revisions that stay, and one clear error for each thing that can be wrong with a model on a Hub.

Each is tried three times: by the installed package, as remote code where the package is not
installed, and by `pipeline`.
"""

import json
import re

import pytest

from tests.helpers.clients import run_client
from tests.helpers.hub import serve

pytestmark = pytest.mark.slow

WAYS = ("installed", "remote", "pipeline")
WHERE = ("online", "offline")

PUBLISH = """
import json, os, sys, torch
from pathlib import Path
from huggingface_hub import HfApi
from plasma_hf import PlasmaConfig, PlasmaModel, load_backbone
from plasma_hf.hub import push
from tests.helpers.tiny_backbones import FAMILIES

folder, api = Path(sys.argv[1]), HfApi()


def upload(name, source):
    api.create_repo(name, exist_ok=True)
    return api.upload_folder(repo_id=name, folder_path=source).oid


def pickled(source):
    (source / "model.safetensors").rename(folder / "aside")
    torch.save({"weight": torch.ones(1)}, source / "pytorch_model.bin")
    return source


# The same names, with other weights in the second revision.
model = PlasmaModel(PlasmaConfig(embedding_size=8, head_size=4))
first = push(model, None, "org/two").oid
with torch.no_grad():
    next(model.parameters()).add_(1)
second = push(model, None, "org/two").oid
esm = FAMILIES["esm2"](folder / "esm")
fields = {"embedding_size": 32, "head_size": 8, "threshold": 0.0, "diagonal_window": 0}
under_first = upload("org/esm", esm)
under = load_backbone("org/esm")
head = PlasmaModel(PlasmaConfig(**fields)).attach_backbone(under).eval()
push(head, under.processor, "org/head")
pair = ("MKTAYIAKQRQISF", "AYIAKQRQ")
score = float(head(**under.processor(*pair)).scores.detach())
other = load_backbone("org/esm").model
with torch.no_grad():
    for parameter in other.parameters():
        parameter.mul_(1.5)
other.save_pretrained(folder / "esm")
under_second = upload("org/esm", esm)
for name in ("lost", "refused"):
    again = PlasmaModel(PlasmaConfig(**fields)).attach_backbone(under, f"org/{name}-esm")
    push(again, None, f"org/{name}")
upload("org/refused-esm", pickled(folder / "esm"))
model.save_pretrained(folder / "plain")
for name in ("cut", "torn"):
    upload(f"org/{name}", folder / "plain")
upload("org/pickled", pickled(folder / "plain"))
model.save_pretrained(folder / "shards", max_shard_size=100)
upload("org/shards", folder / "shards")
(folder / "shards" / "model-00002-of-00003.safetensors").unlink()
upload("org/no-shard", folder / "shards")
found = {"first": first, "second": second, "score": score, "pair": pair}
print(json.dumps(found | {"under": [under_first, under_second], "named": under.revision}))
"""

LOAD = """
import json, sys
sys.modules["plasma_hf"] = None  # any import of it now fails
from pathlib import Path
from transformers import AutoModel, AutoProcessor, pipeline

folder, published = sys.argv[1], json.loads(sys.argv[2])
LABELS = {
    "revision": ("org/two", {"revision": "v9"}),
    "repository": ("org/gone", {}),
    "backbone": ("org/lost", {}),
    "pickle": ("org/pickled", {}),
    "pickled backbone": ("org/refused", {}),
    "shard": ("org/no-shard", {}),
}


def remote(name, **options):
    return AutoModel.from_pretrained(name, trust_remote_code=True, **options)


def installed(name, **options):
    from plasma_hf import PlasmaModel

    return PlasmaModel.from_pretrained(name, **options)


def piped(name, **options):
    return pipeline("protein-alignment", model=name, **options)


def errors_of(load):
    errors = {}
    for label, (name, options) in LABELS.items():
        try:
            load(name, **options)
        except Exception as error:
            errors[label] = f"{type(error).__name__}: {error}"
    return errors


def look(load, **trust):
    two = [load("org/two", revision=published[r]) for r in ("first", "second")]
    head = load("org/head").eval()
    processor = AutoProcessor.from_pretrained("org/head", **trust)
    return {
        "module": type(head).__module__.split(".")[0],
        "sources": [model.source_revision for model in two],
        "weights": [next(model.parameters()).sum().item() for model in two],
        "plm": [head.config.plm_name_or_path, head.config.plm_revision],
        "score": float(head(**processor(*published["pair"])).scores.detach()),
    }


def everything():
    found = {"remote": look(remote, trust_remote_code=True), "remote errors": errors_of(remote)}
    del sys.modules["plasma_hf"]
    found |= {"installed": look(installed), "installed errors": errors_of(installed)}
    return found | {"pipeline errors": errors_of(piped)}
"""

ONLINE = """
for name in ("shards", "cut", "torn"):  # into the cache
    remote(f"org/{name}")
newest = remote("org/two").source_revision
found = everything() | {"newest": newest}
from plasma_hf import export_to_hub_folder

for name, options in {"two": {"revision": published["first"]}, "head": {}}.items():
    made = export_to_hub_folder(installed(f"org/{name}", **options), None, Path(folder, name))
    found[f"record of {name}"] = json.loads((made / "export.json").read_text())
    found[f"card of {name}"] = (made / "README.md").read_text()
print(json.dumps(found))
"""

OFFLINE = """
import os

cache = Path(os.environ["HF_HOME"], "hub")


def in_cache(name, file):
    return next(cache.glob(f"models--org--{name}/snapshots/*/{file}"))


def cut(file):
    blob = file.resolve()
    whole = blob.read_bytes()
    blob.write_bytes(whole[: len(whole) // 2])


cut(in_cache("cut", "model.safetensors"))
cut(in_cache("torn", "config.json"))
in_cache("shards", "model-00003-of-00003.safetensors").unlink()
LABELS |= {name: (f"org/{name}", {}) for name in ("cut", "torn", "shards")}
print(json.dumps(everything()))
"""


@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    """What was published, and what was found and failed online and offline."""
    folder, found = tmp_path_factory.mktemp("trip"), {}
    plain = {"PLASMA_HF_KERNELS": "torch"}
    with serve() as address:
        hub = plain | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        published = run_client(PUBLISH, [folder], folder, "publisher", **hub)
        given = (folder, json.dumps(published))
        found["online"] = run_client(LOAD + ONLINE, given, folder, "reader", **hub)
    off = plain | {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": address}
    found["offline"] = run_client(LOAD + OFFLINE, given, folder, "reader", **off)
    return published, found


def told(trip, where, way, label):
    """Return the error; what `pipeline` raises ends with that of the model."""
    error = trip[1][where][f"{way} errors"][label].strip()
    return re.split(r"\n(?=[\w.]+Error: )", error)[-1]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("way", ["installed", "remote"])
def test_a_revision_is_what_it_was(trip, where, way):
    published, found = trip[0], trip[1][where][way]
    assert found["module"] == {"installed": "plasma_hf", "remote": "transformers_modules"}[way]
    assert found["sources"] == [published["first"], published["second"]]
    assert found["weights"][0] != found["weights"][1]
    # The head names the commit of its backbone, and stands on that one though there is a newer.
    assert published["named"] == published["under"][0] != published["under"][1]
    assert found["plm"] == ["org/esm", published["under"][0]]
    assert found["score"] == pytest.approx(published["score"], abs=1e-6)


def test_an_export_names_the_revisions_it_is_made_of(trip):
    published, found = trip[0], trip[1]["online"]
    assert found["newest"] == published["second"]
    record = found["record of two"]
    assert (record["model"], record["revision"]) == ("org/two", published["first"])
    card = found["card of two"]
    assert f"Exported from `org/two` at revision `{published['first']}`." in card
    record = found["record of head"]
    under = published["under"][0]
    assert (record["plm_name_or_path"], record["plm_revision"]) == ("org/esm", under)
    assert f"Backbone: `org/esm` at revision `{under}`." in found["card of head"]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("way", WAYS)
class TestErrors:
    def test_what_is_not_there(self, trip, where, way):
        # transformers speaks for itself, before any code of the model runs.
        revision, gone = (told(trip, where, way, label) for label in ("revision", "repository"))
        if where == "online":
            assert "v9 is not a valid git identifier" in revision
            assert "Check the model page at" in revision
            assert "org/gone is not a local folder and is not a valid model" in gone
        else:
            for error in (revision, gone):
                assert "couldn't find them in the cached files" in error
                assert "Check your internet connection" in error

    def test_a_backbone_that_is_gone(self, trip, where, way):
        error = told(trip, where, way, "backbone")
        assert "the backbone org/lost-esm" in error and "hf download org/lost-esm" in error

    def test_weights_that_are_a_pickle(self, trip, where, way):
        error = told(trip, where, way, "pickle")
        if where == "online":  # only the Hub knows
            assert "org/pickled has its weights as pytorch_model.bin alone, a pickle" in error
            assert "use_safetensors=False" in error and "PLASMA_HF_ALLOW_PICKLE=1" in error
            error = told(trip, where, way, "pickled backbone")
            assert "org/refused-esm has its weights as pytorch_model.bin alone" in error
            assert "use_safetensors=False" in error
        else:
            assert "org/pickled has no model.safetensors here" in error

    def test_a_part_of_the_weights_that_is_nowhere(self, trip, where, way):
        error = told(trip, where, way, "shard")
        assert "model-00002-of-00003.safetensors" in error and "org/no-shard" in error
        assert "hf download org/no-shard" in error


@pytest.mark.parametrize("way", WAYS)
class TestHalfACache:
    def test_weights_that_were_cut_short(self, trip, way):
        error = told(trip, "offline", way, "cut")
        assert "model.safetensors of org/cut is cut short or damaged (" in error
        assert "type: hf download org/cut" in error and "--force-download." in error

    def test_a_configuration_that_was_cut_short(self, trip, way):
        error = told(trip, "offline", way, "torn")
        if way == "installed":
            assert "config.json of org/torn is cut short or damaged (" in error
            assert "hf download org/torn --force-download." in error
        else:  # AutoConfig of transformers reads it first
            assert "config.json' is not a valid JSON file" in error

    def test_a_part_that_was_not_downloaded(self, trip, way):
        error = told(trip, "offline", way, "shards")
        assert "org/shards has no model-00003-of-00003.safetensors here" in error
        assert "type: hf download org/shards" in error
