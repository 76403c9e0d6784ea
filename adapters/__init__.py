"""Reads, checks, names and packs LoRA adapters, and computes their change of a layer's output.

Owns the bytes and the names of adapters. Must not know requests or model classes. This module imports no torch, because
the front end needs the registry; `device_pool`, `lora` and `reference` do.
"""

from .errors import AdapterError, AdapterNotFound, AdapterRejected, AdapterTooLarge
from .image import AdapterImage, Chunk, ImageTable, PackedModule, pack
from .layout import Layout
from .lora_module import Array, BaseTensors, LoRAModule, TrainedRows
from .peft.checkpoint import Checkpoint, read_checkpoint
from .peft.text import MAX_ADDED_TOKENS, AdapterText, AddedToken
from .registry import Registry, Version, base_name, is_valid_name
from .report import AdapterReport, LayerReport, ModuleReport, inspect_adapter, report_of
from .shard_cut import ModuleCut, ModuleCuts, Range
from .targets import TargetKind, TargetModule

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
    "Array",
    "BaseTensors",
    "Checkpoint",
    "Chunk",
    "ImageTable",
    "LayerReport",
    "Layout",
    "LoRAModule",
    "ModuleCut",
    "ModuleCuts",
    "ModuleReport",
    "PackedModule",
    "Range",
    "Registry",
    "TargetKind",
    "TargetModule",
    "TrainedRows",
    "Version",
    "base_name",
    "inspect_adapter",
    "is_valid_name",
    "pack",
    "read_checkpoint",
    "report_of",
]
