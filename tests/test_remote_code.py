"""A saved folder loads and scores equally in a process that cannot import plasma_hf."""

import ast
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import pipeline

import plasma_hf
from plasma_hf import PlasmaConfig, PlasmaModel, load_aligner, load_backbone
from plasma_hf.kernels import use_kernels
from plasma_hf.models.alignment_result import FORMATS
from plasma_hf.models.processing_plasma import INPUT_FORMATS
from tests.benchmarks.machine import threads
from tests.helpers.clients import run_fresh
from tests.helpers.tiny_backbones import FAMILIES, tm_vec_files

PAIRS = [
    ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEV", "AYIAKQRQLSFVKSHFSRQ"),
    ("GSHMASMTGGQQMGRGS", "MKTAYIAKQRQISFVKSHFSRQ"),
]

KINDS = ("default", "esm", "esm2, small", "ankh", "tm_vec", "near")

FRESH = """
import json, sys
sys.modules["plasma_hf"] = None  # any import of it now fails
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

kinds, pairs, formats = map(json.loads, sys.argv[1:])
pairs = [tuple(pair) for pair in pairs]
queries, candidates = zip(*pairs)

def trip(folder, again):
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    with torch.no_grad():
        scores = model(**processor(query=list(queries), candidate=list(candidates))).scores
    named = pipeline("protein-alignment", model=folder, trust_remote_code=True)
    unnamed = pipeline(model=folder, trust_remote_code=True)
    named.save_pretrained(again)
    results = named(pairs, evalue=1e9)
    try:
        results[0].plot()
    except ImportError as error:
        no_plot = str(error)
    return {
        "texts": {name: results.to_string(name) for name in formats},
        "shown": str(results[0]) + results[0]._repr_html_() + results._repr_html_(),
        "table": [len(results.to_pandas()), len(results[0].to_biopython())],
        "selection": results[0].selection(),
        "no_plot": no_plot,
        "config": type(config).__module__,
        "scores": scores.tolist(),
        "named": [r["score"] for r in named(pairs)],
        "unnamed": [r["score"] for r in unnamed(pairs, batch_size=2)],
    }

print(json.dumps({kind: trip(kind, kind + " again") for kind in kinds}))
"""


def pipe_over(folder, family):
    """Return a pipeline over a small random backbone of a family."""
    folder.mkdir()
    if family == "tm_vec":
        over = FAMILIES["prost_t5"](folder.parent / "language_model")
        input_format = replace(INPUT_FORMATS["tm_vec/upstream"], language_model=str(over))
        backbone = load_backbone(tm_vec_files(folder), input_format)
    else:
        backbone = load_backbone(FAMILIES[family](folder), f"{family}/native")
    torch.manual_seed(0)
    config = PlasmaConfig(embedding_size=32, head_size=8, threshold=0.0, diagonal_window=0)
    return pipeline("protein-alignment", model=PlasmaModel(config).attach_backbone(backbone))


@pytest.fixture(scope="module")
def trip(tmp_path_factory, align, tiny_esm):
    """Save a model of each kind; return the folder, the pipelines and what a process found."""
    folder, pipes = tmp_path_factory.mktemp("trip"), {}
    for kind in KINDS:
        pipes[kind], whole = align, {}
        if kind == "esm":
            pipes[kind] = pipeline("protein-alignment", model=tiny_esm[0], processor=tiny_esm[1])
        elif kind == "near":
            pipes[kind] = pipeline("protein-alignment", model=load_aligner("near"))
        elif kind != "default":
            family, _, small = kind.partition(", ")
            made = tmp_path_factory.mktemp("backbone") / family
            pipes[kind], whole = pipe_over(made, family), {"save_backbone": not small}
        pipes[kind].save_pretrained(folder / kind, **whole)
    printed = run_fresh(FRESH, map(json.dumps, (KINDS, PAIRS, list(FORMATS))), folder)
    return folder, pipes, json.loads(printed.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_saved_folder_needs_no_package(trip, kind):
    folder, pipe, fresh = trip[0], trip[1][kind], trip[2][kind]
    with use_kernels("torch"), threads(1):  # as in the fresh process: numba rounds otherwise
        results = pipe(PAIRS, evalue=1e9)
    expected = [result["score"] for result in results]
    assert fresh["config"].startswith("transformers_modules.")
    for key in ("scores", "named", "unnamed"):
        assert torch.allclose(torch.tensor(fresh[key]), torch.tensor(expected), atol=1e-6)
    if kind in ("default", "near"):  # others are read from plans of random weights
        assert fresh["texts"] == {name: results.to_string(name) for name in FORMATS}
        assert fresh["shown"] == "".join(
            [str(results[0]), results[0]._repr_html_(), results._repr_html_()]
        )
        assert fresh["table"] == [len(results.to_pandas()), len(results[0].to_biopython())]
        assert fresh["selection"] == results[0].selection() != "none"
    assert 'pip install "plasma-hf[plot]"' in fresh["no_plot"]
    # What was saved by the remote code is as complete, and loads here with the package's classes.
    first, second = (
        {f.name: f.read_bytes() for f in (folder / name).glob("*.py")}
        for name in (kind, f"{kind} again")
    )
    assert first == second and ("modeling_tmvec.py" in first) == (kind == "tm_vec")
    assert ("modeling_near.py" in first) == (kind == "near")
    loaded = pipeline("protein-alignment", model=str(folder / f"{kind} again"))
    assert type(loaded.model) is PlasmaModel
    with use_kernels("torch"):
        assert abs(loaded(PAIRS[0])["score"] - expected[0]) < 1e-6


@pytest.mark.slow
def test_a_head_alone_loads_as_remote_code(tmp_path):
    PlasmaModel(PlasmaConfig(head="hinge", embedding_size=None)).save_pretrained(tmp_path / "head")
    code = (
        "import sys; sys.modules['plasma_hf'] = None; import torch\n"
        "from transformers import pipeline\n"
        "pipe = pipeline('protein-alignment', model=sys.argv[1], trust_remote_code=True)\n"
        "torch.manual_seed(0); h = torch.randn(20, 1024); print(pipe((h, h))['score'])"
    )
    assert float(run_fresh(code, [tmp_path / "head"], tmp_path)) > 0.9


def test_the_portable_room_imports_siblings_and_torch_alone():
    allowed = {"torch", "transformers", "numpy", "huggingface_hub", "safetensors", "tokenizers"}
    room = Path(plasma_hf.__file__).parent / "models"
    siblings = {file.stem for file in room.glob("*.py")}
    for file in room.glob("*.py"):
        tree = ast.parse(file.read_text())
        guarded = {n for t in ast.walk(tree) if isinstance(t, ast.Try) for n in ast.walk(t)}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module in siblings, f"{file.name}: {node.module}"
            elif isinstance(node, ast.Import | ast.ImportFrom) and node not in guarded:
                names = [node.module] if isinstance(node, ast.ImportFrom) else node.names
                roots = {str(getattr(n, "name", n)).split(".")[0] for n in names}
                # Nothing but sentence-transformers itself loads this one.
                own = {"sentence_transformers"} if file.stem == "multi_vector" else set()
                assert roots <= allowed | own | sys.stdlib_module_names, f"{file.name}: {roots}"


def test_checkpoints_are_read_as_tensors_alone():
    loads = 0
    for file in Path(plasma_hf.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert given.get("weights_only") == "True", f"{file.name}: {node.lineno}"
                loads += 1
            names = {name.name for name in getattr(node, "names", ()) if hasattr(name, "name")}
            assert not names & {"pickle", "joblib", "dill"}, f"{file.name}: {node.lineno}"
    assert loads
