"""Data sets and metrics on a Hub: pushed, loaded without plasma_hf, online and from the cache."""

import csv
import gzip
import json
import re
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets_scripts"))
import benchmarks
import database_job
import interpro_sites
import pdbbind
import structure_folder
from test_pdbbind import write_complex, write_indexes

from plasma_hf.metrics import average_precision, f1_max, label_match_score
from tests.helpers.clients import run_client
from tests.helpers.hub import serve
from tests.helpers.structures import FULL, write_structure

pytestmark = pytest.mark.slow

pytest.importorskip("evaluate")
pytest.importorskip("datasets")

HEADER = "uid interpro_id seq_full seq_fragment start end label interpro_label".split()
SCORES, LABELS = [0.9, 5.0, -2.0, 30.0, 0.2], [1, 0, 0, 1, 1]
PLAN = [[0.5, 0.0, 0.25], [0.0, 0.5, 0.0]]
SITES = ([1, 1], [0, 1, 1])

PUBLISH = """
import json, sys
from huggingface_hub import HfApi
from plasma_hf.hub import metric_names, push_metric

folder, scripts = sys.argv[1:]
sys.path.insert(0, scripts)
import database_job
from dataset_folder import push_folder
from huggingface_hub import snapshot_download
from plasma_hf.search.database import ProteinDatabase

api = HfApi()
for task in ("active_site", "motif", "active_site"):  # one of them twice
    commit = push_folder(f"{folder}/{task}", "org/interpro-sites", private=False)
push_folder(f"{folder}/structures", "org/structures", private=False)
for name in ("scope40", "balifam"):
    push_folder(f"{folder}/{name}", "org/benchmarks", private=False)
for _ in range(2):  # the second takes the place of the first
    database_job.main("org/structures", "org/database")
database = ProteinDatabase.open(snapshot_download("org/database", repo_type="dataset"))
push_folder(f"{folder}/pdbbind", "org/pdbbind")
for name in metric_names():
    api.create_repo(f"org/{name}", repo_type="space", space_sdk="gradio")
    stray = {"path_in_repo": "stray.py", "path_or_fileobj": b"x = 1"}
    api.upload_file(repo_id=f"org/{name}", repo_type="space", **stray)
    metric = push_metric(name, f"org/{name}")
files = {
    name: api.list_repo_files(name, repo_type=kind)
    for kind, name in [
        ("dataset", "org/interpro-sites"),
        ("dataset", "org/database"),
        *(("space", f"org/{name}") for name in metric_names()),
    ]
}
names = ("pdbbind", "interpro-sites", "database")
private = {n: api.dataset_info(f"org/{n}").private for n in names}
card = open(api.hf_hub_download("org/interpro-sites", "README.md", repo_type="dataset")).read()
print(json.dumps({"files": files, "private": private, "card": card, "commit": commit.oid,
                  "metric": metric.oid, "database": [database.ids, database.sequences]}))
"""

LOAD = """
import json, sys
sys.modules["plasma_hf"] = None  # any import of it now fails
import evaluate
from datasets import load_dataset

scores, labels, plan, sites, commit, pinned = json.loads(sys.argv[1])
found = {"uids": {}}
for task in ("active_site", "motif"):
    splits = load_dataset("org/interpro-sites", task)
    found["uids"][task] = {name: rows["uid"][:] for name, rows in splits.items()}
pinned_rows = load_dataset("org/interpro-sites", "active_site", revision=commit, split="train")
found["label"] = pinned_rows[0]["label"]
for name in ("scope40", "balifam"):
    found[name] = load_dataset("org/benchmarks", name, split="test")[0]
structures = load_dataset("org/structures", split="train")
found["structures"] = [structures["sequence"][:], len(structures[0]["coordinates"])]
found["pdbbind"] = {name: rows["id"][:] for name, rows in load_dataset("org/pdbbind").items()}
for name in ("average_precision", "f1_max"):
    metric = evaluate.load(f"org/{name}")
    found[name] = metric.compute(predictions=scores, references=labels)
matching = evaluate.load("org/label_match_score", revision=pinned)
found["label_match_score"] = matching.compute(
    plans=[plan], query_site_labels=[sites[0]], candidate_site_labels=[sites[1]]
)
print(json.dumps(found))
"""


def export(folder):
    """Build the data sets, small, as folders."""
    for task in ("active_site", "motif"):
        tables = folder / f"{task} tables"
        tables.mkdir()
        for number, split in enumerate(("train", "valid", "test")):
            row = [f"{task} {number}", "IPR1", "MKVLA", "KV", "2", "3", "[0, 1, 1, 0, 0]", "7"]
            with open(tables / f"{split}.csv", "w", newline="") as file:
                csv.writer(file).writerows([HEADER, row])
        built = interpro_sites.InterProSites(task, interpro_sites.find_tables([tables]))
        interpro_sites.export(built, folder / task)
    chain = [(name, FULL) for name in ("ALA", "GLY", "LYS", "SER") * 6]
    (folder / "files").mkdir()
    write_structure(folder / "files" / "one.pdb", {"A": chain})
    built = structure_folder.StructureFolder(folder / "files", str(folder / "cache"))
    structure_folder.export(built, folder / "structures")
    domains = folder / "scope40_files"
    domains.mkdir()
    with gzip.open(domains / "domains.fasta.gz", "wt") as file:
        file.write(">d1\nMKVLA\n>d2\nMK\n")
    (domains / "labels.tsv").write_text("d1\ta.1.1.1\n")
    record = {"a": "p", "b": "q", "seq_a": "MKV", "seq_b": "MRV", "pairs": [[0, 0], [2, 2]]}
    (folder / "pairs.json").write_text(json.dumps([record, {"a": "lacks all else"}]))
    for kind, path, name in (
        ("scope40", domains, "scope40"),
        ("alignments", folder / "pairs.json", "balifam"),
    ):
        built = benchmarks.Benchmark(kind, path, name, str(folder / "cache"))
        benchmarks.export(built, folder / name, "cc0-1.0")
    assert [record.reason for record in built.invalid] == ["it lacks seq_a"]
    root = folder / "downloaded"
    write_indexes(root / "index", "2016")
    write_complex(root / "refined-set" / "1bbb", A="GGAAM", pocket="A")
    write_complex(root / "general-set-except-refined" / "1aaa", A="MKVAGG", pocket="A")
    built = pdbbind.Pdbbind("2016", root, str(folder / "cache"))
    pdbbind.export(built, folder / "pdbbind")


@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    """What the publisher, a reader online and a reader offline have found."""
    folder = tmp_path_factory.mktemp("trip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(folder / "built"))
        export(folder)
    with serve() as address:
        hub = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"}
        published = run_client(
            PUBLISH, [folder, Path(pdbbind.__file__).parent], folder, "hf", **hub
        )
        known = [SCORES, LABELS, PLAN, SITES, published["commit"], published["metric"]]
        given = [json.dumps(known)]
        online = run_client(LOAD, given, folder, "hf", **hub)
    away = {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": address}
    offline = run_client(LOAD, given, folder, "hf", **away)
    return published, online, offline


@pytest.mark.parametrize("where", ["online", "offline"])
def test_data_sets_load_by_name_without_the_package(trip, where):
    found = trip[1 + (where == "offline")]
    splits = ("train", "validation", "test")
    for task in ("active_site", "motif"):
        assert found["uids"][task] == {s: [f"{task} {n}"] for n, s in enumerate(splits)}
    assert found["label"] == [0, 1, 1, 0, 0]
    assert found["structures"] == [["AGKS" * 6], 24 * 4 * 3]
    assert found["scope40"] == {"id": "d1", "sequence": "MKVLA", "family": "a.1.1.1"}
    assert (found["balifam"]["pairs"], found["balifam"]["identity"]) == ([[0, 0], [2, 2]], 1.0)
    assert found["pdbbind"] == {"train": ["1aaa"], "validation": ["1bbb"]}


@pytest.mark.parametrize("where", ["online", "offline"])
def test_metrics_load_by_name_without_the_package(trip, where):
    found = trip[1 + (where == "offline")]
    wanted = {"average_precision": average_precision, "f1_max": f1_max}
    for name, metric in wanted.items():
        assert found[name] == {name: pytest.approx(metric(LABELS, SCORES), abs=1e-12), "pairs": 5}
    assert found["label_match_score"]["label_match_score"] == pytest.approx(
        label_match_score(np.array(PLAN), *SITES), abs=1e-12
    )


def test_configurations_share_a_repository_and_a_card(trip):
    published = trip[0]
    assert published["private"] == {"pdbbind": True, "interpro-sites": False, "database": True}
    files = published["files"]["org/interpro-sites"]
    for task in ("active_site", "motif"):
        inside = sorted(name for name in files if name.startswith(f"{task}/"))
        assert [Path(name).suffix for name in inside] == [".md", *[".parquet"] * 3, ".json", ".md"]
    _, header, text = published["card"].split("---\n", 2)
    configs = yaml.safe_load(header)["configs"]
    assert sorted(c["config_name"] for c in configs) == ["active_site", "motif"]
    assert [config.get("default", False) for config in configs] == [True, False]
    for task in ("active_site", "motif"):
        assert f'load_dataset("org/interpro-sites", "{task}", split="train")' in text
    assert "FOLDER" not in text


def test_a_job_builds_a_database_of_a_data_set(trip):
    assert trip[0]["database"] == [["one.pdb:A"], ["AGKS" * 6]]
    names = [Path(name).suffix for name in trip[0]["files"]["org/database"]]
    assert sorted(filter(None, names)) == [".bin", ".json", ".md"]
    text = Path(database_job.__file__).read_text()
    header = re.search(r"^# /// script\n((?:# .*\n)+)# ///$", text, re.MULTILINE)
    told = tomllib.loads(re.sub("^# ", "", header[1], flags=re.MULTILINE))
    assert told["dependencies"] == ["plasma-hf[search,train]"]


def test_a_space_has_the_metric_and_nothing_stale(trip):
    files = trip[0]["files"]
    papers = {".gitattributes", "README.md", "app.py", "requirements.txt"}
    assert set(files["org/f1_max"]) == papers | {"f1_max.py", "pairs.py"}
    code = {"label_match_score.py", "pairs.py", "residues.py"}
    assert set(files["org/label_match_score"]) == papers | code
