"""Inspection: checks an adapter against a model without an engine.

Imports no torch, unless the adapter is defined by the base model's weights.
"""

from pathlib import Path

from blora.adapters import AdapterRejected, AdapterReport, inspect_adapter

from ..memory.page_size import page_bytes_of
from ..model.targets import adapter_targets
from ..model_files.base_tensors import BaseTensorFiles
from ..model_files.hub import resolve_model
from ..model_files.read_config import load_model_config
from ..text.adapter_tokenizers import AdapterTokenizers
from ..text.tokenizer import load_tokenizer
from .source import resolve_adapter


def inspect(
    path: str | Path, model: str | Path, dtype: str = "auto", block_size: int = 16, revision: str | None = None
) -> AdapterReport:
    """Reports what loading an adapter would come to; the report holds every problem found.

    path: PEFT folder or hub id. The other arguments are options of the engine, on which the sizes depend. Raises
    EngineStartError for a model that cannot be read.
    """
    model_folder = resolve_model(str(model), revision)
    config = load_model_config(model_folder)
    dtype = config.dtype if dtype == "auto" else dtype
    try:
        folder = resolve_adapter(str(path))
    except AdapterRejected as error:
        return AdapterReport(str(path), error.problems)
    page_bytes, base = page_bytes_of(config, dtype, block_size), BaseTensorFiles(model_folder)
    report = inspect_adapter(folder, adapter_targets(config), dtype, page_bytes, base=base)
    return AdapterTokenizers(load_tokenizer(model_folder), config.vocab_size).check_report(report)
