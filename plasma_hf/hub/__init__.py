"""To the Hub: complete folders, checked before they leave."""

from .export import check_hub_folder, export_to_hub_folder
from .upload import metric_names, metric_space, push, push_metric

__all__ = [
    "check_hub_folder",
    "export_to_hub_folder",
    "metric_names",
    "metric_space",
    "push",
    "push_metric",
]
