"""To the Hub: complete folders, checked before they leave."""

from __future__ import annotations

from .completeness import check_hub_folder
from .export import export_to_hub_folder
from .metric_spaces import metric_names, metric_space, push_metric
from .push import push
from .space import demo_space, push_demo_space

__all__ = [
    "check_hub_folder",
    "demo_space",
    "export_to_hub_folder",
    "metric_names",
    "metric_space",
    "push",
    "push_demo_space",
    "push_metric",
]
