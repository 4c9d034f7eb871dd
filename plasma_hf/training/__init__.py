"""What training needs beside `Trainer`: adapters for the backbone."""

from __future__ import annotations

from .lora import lora_config

__all__ = ["lora_config"]
