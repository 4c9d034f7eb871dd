"""Cards of models and metrics: true to the files, valid for the Hub, and their lines run."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
import shutil
import sys
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, SpaceCard

from plasma_hf import (
    DEFAULT_CHECKPOINT,
    PlasmaConfig,
    PlasmaModel,
    ProtAlignConfig,
    ProtAlignModel,
    ProteinMPNNEncoder,
    load_backbone,
)
from plasma_hf.hub import export_to_hub_folder
from plasma_hf.hub.card import ANY_REPOSITORY, card_of, model_card, template_folder
from plasma_hf.hub.upload import metric_names, metric_space, push_metric, space_card
from plasma_hf.models.modeling_protein_mpnn import ProteinMPNNConfig
from plasma_hf.models.modeling_residue_encoder import ResidueEncoderConfig, ResidueEncoderModel
from plasma_hf.models.processing_plasma import substitution_tokenizer
from reproduce.bundled_cards import RENDERED, add_held_out, bundled, calibration, card_text
from tests.helpers.structure_files import make_structure, write_pdb

SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LICENCES = ("mit", "apache-2.0", "cc-by-4.0", "cc0-1.0")  # identifiers of the Hub
FIGURES = {"extrapolation": {"roc_auc": 0.9123, "label_match_score": 0.5, "pairs": 200}}


def run_snippet(card: str, place: Any) -> str:
    """Run the lines of a card as its reader would, with the place of the model filled in."""
    (code,) = SNIPPET.findall(card)
    code = code.replace(ANY_REPOSITORY, str(place))
    assert len(ast.parse(code).body) <= 5
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {"__name__": "card"})
    return printed.getvalue()


def check_header(card: str) -> None:
    """Check what the Hub checks: the header parses, and its results come back as they went in."""
    read = ModelCard(card)
    assert read.data.license in LICENCES
    assert read.data.pipeline_tag == "feature-extraction"
    assert read.data.library_name in ("transformers", "peft")
    header = yaml.safe_load(card.split("---\n")[1])
    results = header.get("model-index", [{"results": []}])[0]["results"]
    values = [metric["value"] for result in results for metric in result["metrics"]]
    assert values == [result.metric_value for result in read.data.eval_results or []]
    for result in results:
        assert {"type"} <= set(result["task"]) and {"name", "type"} <= set(result["dataset"])
        names = [metric["type"] for metric in result["metrics"]]
        assert len(names) == len(set(names))  # one value of each metric for a data set
    assert "{{" not in card and "{%" not in card


@pytest.mark.parametrize("folder", bundled(), ids=lambda folder: folder.name)
def test_the_card_of_a_bundled_model_is_that_of_its_files(folder: Path) -> None:
    card = card_text(folder)
    again = "run python -m reproduce.bundled_cards"
    assert card == (RENDERED / f"{folder.name}.md").read_text(), again
    assert card == (folder / "README.md").read_text(), again
    check_header(card)
    assert run_snippet(card, folder)


def test_figures_of_the_default_are_held_out_ones_with_baselines_beside() -> None:
    card = model_card(DEFAULT_CHECKPOINT)
    held_out = json.loads((Path(DEFAULT_CHECKPOINT) / "metrics.json").read_text())["held_out"]
    assert [table["identity"] for table in held_out["tables"]] == [
        "all",
        "< 20 %",
        "20-35 %",
        ">= 35 %",
    ]
    for table in held_out["tables"]:
        assert {"default", "smith-waterman"} <= {row["method"] for row in table["rows"]}
        assert f"{table['rows'][0]['roc_auc'][0]:.3f} ±" in card.text
    steps = held_out["calibration"]["steps"]
    assert sum(step["pairs"] for step in steps) == 2 * held_out["tables"][0]["positives"]


@pytest.mark.parametrize("name", metric_names())
def test_the_card_of_a_metric_is_rendered_as_it_stands(name: str) -> None:
    text = (RENDERED / f"metric_{name}.md").read_text()
    assert space_card(name) == text, "run python -m reproduce.bundled_cards"
    data = SpaceCard(text).data
    assert (data.title, data.sdk, data.app_file, data.license) == (name, "gradio", "app.py", "mit")


def test_a_card_never_has_figures_of_other_settings(tmp_path: Path) -> None:
    folder = shutil.copytree(DEFAULT_CHECKPOINT, tmp_path / "model")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | {"score_form": "mass"}))
    with pytest.raises(ValueError, match="score_form=published, and the model has score_form=mass"):
        model_card(folder)


def test_the_card_of_an_export_keeps_figures_only_while_they_are_true(tmp_path: Path) -> None:
    model = PlasmaModel.from_pretrained(DEFAULT_CHECKPOINT)
    same = ModelCard.load(export_to_hub_folder(model, None, tmp_path / "same") / "README.md")
    assert same.text == model_card(DEFAULT_CHECKPOINT).text
    model.config.kernel_scale = 0.3
    card = ModelCard.load(export_to_hub_folder(model, None, tmp_path / "changed") / "README.md")
    assert "Held-out" not in card.text and card.data.eval_results is None
    assert "has not been calibrated" in card.text


def test_an_evaluation_becomes_figures_and_calibration(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    PlasmaModel(PlasmaConfig(embedding_size=8, head_size=4)).save_pretrained(folder)
    write_evaluation(tmp_path / "out")
    found = add_held_out(folder, tmp_path / "out", "mine")["held_out"]
    assert [row["method"] for row in found["tables"][0]["rows"]] == ["mine", "length"]
    assert found["calibration"]["steps"][-1] == {"from": 0.9, "to": 1.0, "pairs": 2, "positives": 2}
    card = model_card(folder)
    check_header(str(card))
    assert "| length alone | 0.500 ± 0.100 | 0.500 ± 0.100 | - |" in card.text
    assert "| 0.9 to 1.0 | 2 | 100 % |" in card.text
    with pytest.raises(ValueError, match="0 rows of 'yours'; give one of length, mine"):
        add_held_out(folder, tmp_path / "out", "yours")


def write_evaluation(folder: Path) -> None:
    """Write what `plasma-hf evaluate --out` would, of a model and a baseline."""
    folder.mkdir()
    figure = {"mean": 0.5, "standard_error": 0.1}
    none = {"mean": None, "standard_error": None}
    rows = [
        {
            "aligner": name,
            "task": "active_site",
            "split": "test_hard",
            "seeds": [1, 2],
            "pairs": {"positives": [1, 1], "negatives": [1, 1]},
            "figures": {"roc_auc": figure, "average_precision": figure, "label_match": match},
        }
        for name, match in (("length", none), ("mine", figure))
    ]
    found = {
        "settings": {"protocol": "strict"},
        "sites": {"rows": rows, "by_identity": {"< 20 %": rows}},
    }
    (folder / "evaluation.json").write_text(json.dumps(found))
    scores = "".join(
        f"mine,{score},{label}\n" for score, label in ((0.95, 1), (0.1, 0), (0.97, 1), (0.2, 0))
    )
    (folder / "pairs.csv").write_text(f"aligner,score,label\n{scores}length,9,1\n")


def test_calibration_leaves_out_failed_pairs_and_counts_a_score_of_one() -> None:
    found = calibration([1.0, 0.0, float("nan")], [1, 0, 1])
    assert [(step["from"], step["pairs"]) for step in found["steps"]] == [(0.0, 1), (0.9, 1)]


def test_a_run_writes_the_card_that_its_folder_gives(tmp_path: Path) -> None:
    model = PlasmaModel(PlasmaConfig(embedding_size=8, head_size=4))
    model.save_pretrained(tmp_path)
    details = {"name": "Mine", "data": "UniProtKB/Swiss-Prot (CC BY 4.0)", "seed": 3}
    written = {"figures": FIGURES, "settings": details}
    (tmp_path / "metrics.json").write_text(json.dumps(written))
    card = card_of(model.config, {"figures": FIGURES, "settings": details})
    assert str(card) == str(model_card(tmp_path))
    check_header(str(card))
    assert "Data: UniProtKB/Swiss-Prot (CC BY 4.0)." in card.text and "- seed: 3" in card.text
    assert "tensor([" in run_snippet(str(card), tmp_path)


def test_the_card_of_a_protalign_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mpnn = ProteinMPNNEncoder(ProteinMPNNConfig(hidden_size=16, k_neighbors=4))
    sizes = {"sequence_size": 420, "hidden_size": 16, "num_heads": 2}
    model = ProtAlignModel(ProtAlignConfig(**sizes, structure_size=16))
    model.attach_backbone(load_backbone("substitution")).attach_structure_encoder(mpnn)
    model.save_pretrained(tmp_path)
    model.processor.save_pretrained(tmp_path)
    figures = {"test": {"recall_at_1": 0.25, "mrr": 0.5, "pairs": 20}}
    (tmp_path / "metrics.json").write_text(json.dumps({"figures": figures}))
    card = str(model_card(tmp_path, held_out="| method | R@1 |\n|---|--:|\n| chance | 0.050 |"))
    check_header(card)
    assert "| test | 0.250 | - | 0.500 |" in card and "| chance | 0.050 |" in card
    assert "'rank': 1" in run_snippet(card, tmp_path)
    alone = ProtAlignModel(ProtAlignConfig(**sizes))
    alone.save_pretrained(tmp_path / "alone")
    assert "[1, 16]" in run_snippet(str(model_card(tmp_path / "alone")), tmp_path / "alone")


def test_the_card_of_an_encoder(tmp_path: Path) -> None:
    ResidueEncoderModel(ResidueEncoderConfig(width=8)).save_pretrained(tmp_path)
    substitution_tokenizer().save_pretrained(tmp_path)
    card = str(model_card(tmp_path))
    check_header(card)
    assert run_snippet(card, tmp_path) == "torch.Size([18, 420])\n"


def test_the_card_of_an_encoder_of_structures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ProteinMPNNEncoder(ProteinMPNNConfig(hidden_size=16, k_neighbors=4)).save_pretrained(tmp_path)
    write_pdb(make_structure("one", 12, 0), tmp_path / "protein.pdb")
    monkeypatch.chdir(tmp_path)
    card = str(model_card(tmp_path))
    check_header(card)
    assert run_snippet(card, tmp_path) == "torch.Size([12, 16])\n"


def test_the_card_of_an_adapter(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    from plasma_hf.training.arguments import lora_config
    from tests.helpers.tiny_backbones import FAMILIES

    backbone = load_backbone(FAMILIES["esm2"](tmp_path / "esm2_t6_8M_UR50D"))
    model = PlasmaModel(PlasmaConfig(embedding_size=32, head_size=4)).attach_backbone(backbone)
    model.save_pretrained(tmp_path / "base")
    backbone.processor.save_pretrained(tmp_path / "base")
    model = PlasmaModel.from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, lora_config(model, rank=4))
    adapted.save_pretrained(tmp_path / "adapter")
    card = str(model_card(tmp_path / "adapter"))
    check_header(card)
    assert "rank 4" in card and "alignment_head" in card
    assert 0 <= float(run_snippet(card, tmp_path / "adapter")) <= 1
    assert ModelCard(card).data.library_name == "peft"


def test_base_and_data_sets_are_named_for_the_hub() -> None:
    config = PlasmaConfig(plm_name_or_path="facebook/esm2_t33_650M_UR50D")
    card = card_of(config, {"settings": {"datasets": ["org/interpro-sites"]}})
    assert card.data.base_model == "facebook/esm2_t33_650M_UR50D"
    assert card.data.datasets == ["org/interpro-sites"]


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has neither config.json nor adapter_config.json"):
        model_card(tmp_path)


def test_templates_are_those_of_hub_cards() -> None:
    names = {path.name for path in template_folder().glob("*.md")}
    assert {"model_plasma.md", "model_protalign.md", "model_encoder.md", "adapter.md"} <= names
    assert "metric_space.md" in names


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`evaluate`, writing to a temporary folder and finding nothing that was loaded before."""
    module = pytest.importorskip("evaluate")
    init = partial(module.loading.init_dynamic_modules, hf_modules_cache=str(tmp_path / "modules"))
    monkeypatch.setattr("evaluate.loading.init_dynamic_modules", init)
    monkeypatch.setattr(module, "load", partial(module.load, cache_dir=str(tmp_path / "cache")))
    elsewhere = [path for path in sys.path if not (Path(path) / "evaluate_modules").is_dir()]
    monkeypatch.setattr(sys, "path", elsewhere)
    before = {name: sys.modules[name] for name in loaded_metrics()}
    forget_metrics()
    yield module
    forget_metrics()
    sys.modules.update(before)


def loaded_metrics() -> list[str]:
    """Return the modules that `evaluate` has loaded."""
    return [name for name in sys.modules if name.startswith("evaluate_modules")]


def forget_metrics() -> None:
    """Forget them; `evaluate` finds those of one folder alone."""
    for name in loaded_metrics():
        del sys.modules[name]


@pytest.mark.parametrize("name", metric_names())
def test_the_folder_of_a_space_loads_as_its_card_says(
    name: str, evaluate: Any, tmp_path: Path
) -> None:
    folder = metric_space(name, tmp_path / name)
    files = {"README.md", "app.py", "requirements.txt", f"{name}.py"}
    assert {file.name for file in folder.iterdir()} > files  # and what the module imports
    run_snippet((folder / "README.md").read_text(), folder)
    assert evaluate.load(str(folder)).name == name


def test_the_page_of_a_space_computes(evaluate: Any, tmp_path: Path, monkeypatch: Any) -> None:
    gradio = types.SimpleNamespace(
        Interface=lambda **given: types.SimpleNamespace(**given),
        Textbox=lambda label: label,
        JSON=lambda label: label,
        Error=type("Error", (Exception,), {}),
    )
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    # A Space is checked out to a folder of another name.
    folder = metric_space("label_match_score", tmp_path / "app")
    namespace: dict[str, Any] = {"__name__": "page", "__file__": str(folder / "app.py")}
    exec((folder / "app.py").read_text(), namespace)
    page = namespace["build"](namespace["load_metric"]())
    assert page.title == "label_match_score"
    assert page.inputs[0] == "plans, a list in JSON"
    found = page.fn("[[[1.0, 0.0], [0.0, 0.5]]]", "[[1, 1]]", "[[1, 1]]")
    assert (found["label_match_score"], found["pairs"]) == (0.75, 1)
    with pytest.raises(gradio.Error):
        page.fn("[[[1.0]]]", "no JSON", "[[1]]")


def test_a_metric_goes_to_a_space_of_its_own_name() -> None:
    with pytest.raises(ValueError, match="give org/f1_max"):
        push_metric("f1_max", "org/f1")
    with pytest.raises(ValueError, match="no metric 'auc'; give one of average_precision"):
        metric_space("auc", "nowhere")
