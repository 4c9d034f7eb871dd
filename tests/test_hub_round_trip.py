"""Push to a Hub; load in processes without plasma_hf, online and from the cache; push again."""

import json

import pytest
import torch

from tests.helpers.clients import run_client
from tests.helpers.hub import serve

pytestmark = pytest.mark.slow

pytest.importorskip("peft")

KINDS = ("plasma", "protalign", "encoder", "base")
RECORDS = ("export.json", "README.md")  # say where an export came from and where it goes

PAIR = ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEV", "AYIAKQRQLSFVKSHFSRQ")

PUBLISH = """
import json, sys, torch, plasma_hf
from pathlib import Path
from peft import LoraConfig, get_peft_model
from transformers import AutoProcessor, pipeline
from plasma_hf import PlasmaConfig, PlasmaModel, load_backbone
from plasma_hf.hub import push
from plasma_hf.models.processing_protalign import ProtAlignProcessor
from plasma_hf.models.processing_plasma import substitution_tokenizer
from plasma_hf.training import lora_config
from tests.test_protalign import SEQUENCES, whole_model
from tests.helpers.tiny_backbones import FAMILIES

folder, pair = Path(sys.argv[1]), tuple(json.loads(sys.argv[2]))
plasma = PlasmaModel.from_pretrained(plasma_hf.DEFAULT_CHECKPOINT)
processor = AutoProcessor.from_pretrained(plasma_hf.DEFAULT_CHECKPOINT)
protalign = whole_model()
encoder = protalign.sequence_encoder
with torch.no_grad():
    encoder.residual.weight.normal_(std=0.1)
under = load_backbone(FAMILIES["esm2"](folder / "tiny_esm2"))
fields = {"embedding_size": 32, "head_size": 8, "threshold": 0.0, "diagonal_window": 0}
base = PlasmaModel(PlasmaConfig(**fields)).attach_backbone(under).eval()
tokens = substitution_tokenizer()
commits = {}
for name, model, reads in (
    ("plasma", plasma, processor),
    ("protalign", protalign, ProtAlignProcessor()),
    ("encoder", encoder, tokens),
    ("base", base, under.processor),
):
    commits[name] = push(model, reads, f"org/{name}", folder=folder / name).oid
head = PlasmaModel(PlasmaConfig(**fields)).attach_backbone(under, "org/lost_esm2")
push(head, None, "org/head")
adapter = get_peft_model(base, lora_config(base, rank=2, init_lora_weights=False)).eval()
push(adapter, None, "org/adapter", folder=folder / "adapter", base_model="org/base")
ids = tokens(SEQUENCES[0], return_tensors="pt").input_ids
found = {
    "commits": commits,
    "plasma": pipeline("protein-alignment", model=plasma, processor=processor)(pair)["score"],
    "protalign": protalign.embed_sequences(SEQUENCES).tolist(),
    "encoder": encoder(ids).last_hidden_state.tolist(),
    "adapter": float(adapter(**under.processor(*pair)).scores.detach()),
    "sequences": SEQUENCES,
}
print(json.dumps(found))
"""

LOAD = """
import json, sys
sys.modules["plasma_hf"] = None  # any import of it now fails
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, pipeline

pair, sequences, commits = (json.loads(argument) for argument in sys.argv[1:4])
remote = {"trust_remote_code": True}
configs = [AutoConfig.from_pretrained(f"org/{kind}", **remote) for kind in commits]
models = {k: AutoModel.from_pretrained(f"org/{k}", **remote) for k in (*commits, "adapter")}
reads = {kind: AutoProcessor.from_pretrained(f"org/{kind}", **remote) for kind in commits}
pinned = {"model": "org/plasma", "revision": commits["plasma"], **remote}
align = [pipeline("protein-alignment", **pinned), pipeline(model="org/plasma", **remote)]
adapted = pipeline("protein-alignment", model="org/adapter", **remote)
search = pipeline("protein-retrieval", model="org/protalign", candidates=sequences, **remote)
ids = reads["encoder"](sequences[0], return_tensors="pt").input_ids
found = {
    "modules": [type(each).__module__ for each in (*configs, *models.values())],
    "plasma": [float(models["plasma"](**reads["plasma"](*pair)).scores.detach())]
    + [pipe(tuple(pair))["score"] for pipe in align],
    "protalign": models["protalign"].embed_sequences(sequences).tolist(),
    "encoder": models["encoder"](ids).last_hidden_state.tolist(),
    "adapter": [float(models["adapter"](**reads["base"](*pair)).scores.detach()),
                adapted(tuple(pair))["score"]],
    "hit": search(sequences[1])[0],
}
errors = {}


def failing(name, repository, **options):
    try:
        AutoModel.from_pretrained(repository, **remote, **options)
        errors[name] = "none"
    except Exception as error:
        errors[name] = f"{type(error).__name__}: {error}"


failing("backbone", "org/head")
"""

ONLINE = """
from pathlib import Path
from huggingface_hub import HfApi, snapshot_download

folder, api = Path(sys.argv[4]), HfApi()
failing("revision", "org/plasma", revision="v9")
failing("repository", "org/gone")
for name, file in {"code": "modeling_backbone.py", "weights": "model.safetensors"}.items():
    api.create_repo(f"org/no-{name}")
    there = snapshot_download("org/plasma")
    api.upload_folder(repo_id=f"org/no-{name}", folder_path=there, ignore_patterns=file)
    failing(name, f"org/no-{name}")

# Saved by the remote code itself; exported by the installed package, from the remote code; and
# that pushed and downloaded.
for kind in commits:
    models[kind].save_pretrained(folder / "saved" / kind)
    reads[kind].save_pretrained(folder / "saved" / kind)
del sys.modules["plasma_hf"]
from plasma_hf.hub import push

for kind in commits:
    push(models[kind], reads[kind], f"org/{kind}-again", folder=folder / "exported" / kind)
    snapshot_download(f"org/{kind}-again", local_dir=folder / "downloaded" / kind)
push(models["adapter"], None, "org/adapter-again", folder=folder / "exported/adapter")
snapshot_download("org/adapter-again", local_dir=folder / "downloaded/adapter")
for kind in ("plasma", "adapter"):
    found[f"record of {kind}"] = json.loads((folder / f"exported/{kind}/export.json").read_text())

# A second push takes away what it does not bring, and leaves the card.
api.upload_file(repo_id="org/plasma-again", path_in_repo="old.py", path_or_fileobj=b"x = 1")
api.upload_file(repo_id="org/plasma-again", path_in_repo="README.md", path_or_fileobj=b"# Mine")
push(models["plasma"], reads["plasma"], "org/plasma-again")
there = snapshot_download("org/plasma-again")
found["card"], found["old"] = Path(there, "README.md").read_text(), Path(there, "old.py").exists()

print(json.dumps(found | {"errors": errors}))
"""

OFFLINE = """
import os, shutil
from pathlib import Path

cache = Path(os.environ["HF_HOME"], "hub")
for name, file in {"code": "modeling_backbone.py", "weights": "model.safetensors"}.items():
    half = cache / f"models--org--half-{name}"
    shutil.copytree(cache / "models--org--plasma", half, symlinks=True)
    next(half.glob(f"snapshots/*/{file}")).unlink()
    failing(f"half {name}", f"org/half-{name}")
failing("repository", "org/gone")
del sys.modules["plasma_hf"]
from plasma_hf.hub import check_hub_folder

found["checked"] = check_hub_folder("org/plasma", commits["plasma"])
for name in ("org/half-code", "org/half-weights", "org/gone"):
    try:
        check_hub_folder(name)
    except FileNotFoundError as error:
        errors[f"check {name}"] = str(error)
print(json.dumps(found | {"errors": errors}))
"""


@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    """The folder of a round trip, and what was found by each process on the way."""
    folder = tmp_path_factory.mktemp("trip")
    pair = json.dumps(PAIR)
    with serve() as address:
        # Plain torch: a fresh copy of the code would be compiled anew, for many seconds.
        plain = {"PLASMA_HF_KERNELS": "torch"}
        hub = plain | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        published = run_client(PUBLISH, (folder, pair), folder, "p", **hub)
        given = (pair, json.dumps(published["sequences"]), json.dumps(published["commits"]), folder)
        online = run_client(LOAD + ONLINE, given, folder, "hf", **hub)
    offline = run_client(LOAD + OFFLINE, given, folder, "hf", HF_HUB_OFFLINE="1", **plain)
    return folder, published, online, offline


def code_and_weights(folder):
    files = (file for file in folder.iterdir() if file.is_file() and file.name not in RECORDS)
    return {file.name: file.read_bytes() for file in files if file.name != ".gitattributes"}


def check_equal(found, wanted):
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=0, atol=1e-6)


@pytest.mark.parametrize("where", ["online", "offline"])
def test_what_was_pushed_loads_without_the_package(trip, where):
    _, published, *loaded = trip
    found = loaded[where == "offline"]
    assert all(module.startswith("transformers_modules.org.") for module in found["modules"])
    check_equal(found["plasma"], [published["plasma"]] * 3)
    check_equal(found["adapter"], [published["adapter"]] * 2)
    assert published["adapter"] > 0
    check_equal(found["protalign"], published["protalign"])
    check_equal(found["encoder"], published["encoder"])
    assert found["hit"]["id"] == "candidate 2" and found["hit"]["score"] > 0.999999


@pytest.mark.parametrize("kind", [*KINDS, "adapter"])
def test_a_round_trip_changes_nothing(trip, kind):
    folder = trip[0]
    first = code_and_weights(folder / kind)
    for again in ("exported", "downloaded"):
        assert code_and_weights(folder / again / kind) == first
    if kind == "adapter":
        assert {"adapter_config.json", "adapter_model.safetensors"} <= first.keys()
        return
    # What the remote code saves by itself lacks the papers, and is the same otherwise.
    saved = code_and_weights(folder / "saved" / kind)
    papers = {"LICENSE", "requirements.txt"}
    if kind in ("plasma", "base"):
        papers |= {"modules.json", "config_sentence_transformers.json", "multi_vector.py"}
    assert papers <= first.keys() - saved.keys() <= papers | {"metrics.json"}
    assert {n for n in saved if saved[n] != first[n]} <= {"tokenizer_config.json"}


def test_an_export_says_what_it_was_made_from(trip):
    folder, published, online, _ = trip
    for kind, model in (("plasma", "plasma"), ("adapter", "base")):
        told = online[f"record of {kind}"]
        assert (told["model"], told["revision"]) == (f"org/{model}", published["commits"][model])
        assert told["pushed_to"] == f"org/{kind}-again"
    card = (folder / "exported/plasma/README.md").read_text()
    commit = published["commits"]["plasma"]
    assert f"Exported from `org/plasma` at revision `{commit}`." in card
    record = json.loads((folder / "plasma/export.json").read_text())
    assert record["commit"] == published["commits"]["plasma"] and record["model"] is None
    everything = [f.read_text() for f in folder.glob("*/*.json") if f.parent.name != "tiny_esm2"]
    assert everything and not any(str(folder) in text for text in everything)


def test_a_second_push_replaces_code_and_keeps_the_card(trip):
    assert trip[2]["card"] == "# Mine" and not trip[2]["old"]


def test_errors_online_name_what_is_missing(trip):
    errors = trip[2]["errors"]
    assert "v9 is not a valid git identifier" in errors["revision"]
    assert "org/gone is not a local folder and is not a valid model" in errors["repository"]
    assert "org/no-code does not appear to have a file named modeling_backbone.py" in errors["code"]
    assert "org/no-weights has no model.safetensors here" in errors["weights"]
    assert "type: hf download org/no-weights" in errors["weights"]


def test_errors_offline_name_what_is_missing(trip):
    folder, _, online, offline = trip
    errors = offline["errors"]
    # Before any code of the model runs, transformers speaks for itself.
    for name in ("half code", "repository"):
        assert "couldn't find them in the cached files" in errors[name]
        assert "Check your internet connection" in errors[name]
    assert "org/half-weights has no model.safetensors here" in errors["half weights"]
    assert "type: hf download org/half-weights" in errors["half weights"]
    for found in (online["errors"], errors):
        assert "the backbone org/lost_esm2 is no folder here" in found["backbone"]
        assert "hf download org/lost_esm2" in found["backbone"]
    # The package says which file it is, and what to type.
    for name, file in {"code": "modeling_backbone.py", "weights": "model.safetensors"}.items():
        assert f"has no {file}, which" in errors[f"check org/half-{name}"]
        assert f"type: hf download org/half-{name}" in errors[f"check org/half-{name}"]
    assert "type: hf download org/gone" in errors["check org/gone"]
    assert offline["checked"] == sorted(file.name for file in (folder / "plasma").glob("*.py"))
