"""LoRA bytes: reading, checking and packing adapters, and the LoRA operation. Knows no request and no model class.

This module imports no torch, because the front end needs the registry; `device_pool`, `lora` and `reference` do.
"""

from .errors import AdapterError, AdapterNotFound, AdapterRejected, AdapterTooLarge
from .image import AdapterImage, ImageTable, pack
from .layout import Layout
from .peft.checkpoint import Checkpoint, read_checkpoint
from .peft.text import MAX_ADDED_TOKENS, AdapterText, AddedToken
from .registry import Registry, Version, base_name, is_valid_name
from .report import AdapterReport, inspect_adapter, report_of
from .shard_cut import ModuleCut, ModuleCuts
from .targets import TargetModule

__all__ = [
    "MAX_ADDED_TOKENS",
    "AdapterError",
    "AdapterImage",
    "AdapterNotFound",
    "AdapterRejected",
    "AdapterReport",
    "AdapterText",
    "AdapterTooLarge",
    "AddedToken",
    "Checkpoint",
    "ImageTable",
    "Layout",
    "ModuleCut",
    "ModuleCuts",
    "Registry",
    "TargetModule",
    "Version",
    "base_name",
    "inspect_adapter",
    "is_valid_name",
    "pack",
    "read_checkpoint",
    "report_of",
]
