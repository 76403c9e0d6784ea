"""Reads the configuration of a model, from a Hugging Face folder or a .gguf file. Imports no torch."""

import json
from pathlib import Path

from .architectures import hf_model_config
from .config import ModelConfig, UnsupportedModel, read_json
from .foreign_model import kind_of_model_file

STORED_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def load_model_config(path: Path) -> ModelConfig:
    """path: a Hugging Face folder or a .gguf file. Raises UnsupportedModel that names the obstacle."""
    if path.suffix == ".gguf":
        from .gguf_config import gguf_model_config

        return gguf_model_config(path)
    file = path / "config.json"
    if not file.is_file():
        raise UnsupportedModel(f"{path} holds no config.json")
    fields = read_json(file)
    if not isinstance(fields, dict):
        raise UnsupportedModel(f"{file} does not hold a JSON object")
    if fields.get("dtype") is None:
        fields["dtype"] = fields.get("torch_dtype") or stored_dtype(path)
    return hf_model_config(fields)


def stored_dtype(folder: Path) -> str:
    """The dtype of the first floating tensor of the first safetensors file, which transformers uses for "auto".

    A file begins with the length of its JSON header (8 bytes, little-endian), then comes the header.
    """
    for file in sorted(folder.glob("*.safetensors")):
        kind = kind_of_model_file(file)
        if kind is not None:
            raise UnsupportedModel(f"{file} is {kind}")
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__" and entry["dtype"] in STORED_DTYPES:
                return STORED_DTYPES[entry["dtype"]]
    raise UnsupportedModel(f"{folder}: config.json names no dtype, and no safetensors file holds a floating tensor")
