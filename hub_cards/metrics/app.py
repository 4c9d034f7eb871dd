"""The page of a metric's Space: one field for each input, the metrics below."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# evaluate and gradio are imported where they are needed: this package does without them.


def load_metric() -> Any:
    """Load the module that lies beside this file, and has the metric's class."""
    import evaluate

    files = (file for file in Path(__file__).parent.glob("*.py") if file.name != "app.py")
    beside = next(file for file in files if "(evaluate.Metric)" in file.read_text())
    return evaluate.load(str(beside))


def build(metric: Any) -> Any:
    """Lay out the page of a metric.

    Args:
        metric: What `evaluate.load` gives.

    Returns:
        A `gradio.Interface`; `evaluate.utils.launch_gradio_widget` needs gradio 3, which does not
        go with huggingface_hub 1 and later.
    """
    import gradio

    def compute(*texts: str) -> Any:
        try:
            given = {
                name: json.loads(text) for name, text in zip(metric.features, texts, strict=True)
            }
            return metric.compute(**given)
        except (TypeError, ValueError) as error:
            raise gradio.Error(str(error)) from error

    return gradio.Interface(
        fn=compute,
        inputs=[gradio.Textbox(label=f"{name}, a list in JSON") for name in metric.features],
        outputs=gradio.JSON(label="metrics"),
        title=metric.name,
        description=metric.description,
        article=metric.inputs_description,
        flagging_mode="never",
    )


if __name__ == "__main__":
    build(load_metric()).launch()
