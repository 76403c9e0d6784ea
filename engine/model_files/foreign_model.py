"""Foreign models: what a folder or a file is that should hold a model in safetensors, so that an error can say so."""

import re
from pathlib import Path

from blora.adapters.peft.foreign import LFS_POINTER, is_lfs_pointer, kind_of_content

NUM_FIRST_BYTES = 64

# A pattern of a file's name, and what a folder holds that has one in place of safetensors. The first match counts.
FOLDERS: tuple[tuple[str, str], ...] = (
    (r"model-\d+-of-\d+\.safetensors", "files of weights without their index: download it, too"),
    (
        r"pytorch_model.*\.bin",
        "pytorch_model.bin, a pickle, which is never opened: save the model with safe_serialization=True",
    ),
    (r"adapter_model\.\w+", "an adapter, not a model: load it beside the model that it was trained on"),
    (r".*\.gguf", "a GGUF file: name the file itself as the model"),
    (r"consolidated.*", "weights in the format of Mistral or Meta: convert the model to that of transformers"),
    (r"global_step\d+|zero_to_fp32\.py", "a checkpoint of DeepSpeed: convert it with zero_to_fp32.py"),
    (r".*\.distcp|pytorch_model_fsdp_\d+", "a distributed checkpoint of torch: merge it into one state and save that"),
    (r".*\.(npz|h5|msgpack|ot|onnx)", "weights of another framework: convert the model"),
    (r".*\.(pt|pth|bin|ckpt|pkl)", "a pickle, which is never opened: save the model with safe_serialization=True"),
    (r".*\.safetensors", "safetensors files of other names"),
    (r"checkpoint-\d+", "checkpoints of a trainer: name one of them"),
)


def kind_of_model_folder(folder: Path) -> str | None:
    """Returns what a folder without safetensors of a model holds; None if its files do not tell."""
    names = [entry.name for entry in folder.iterdir()]
    return next((kind for pattern, kind in FOLDERS if any(re.fullmatch(pattern, name) for name in names)), None)


def kind_of_model_file(file: Path) -> str | None:
    """Returns what a file is that cannot be read as safetensors; None for an unknown kind."""
    try:
        with file.open("rb") as stream:
            first = stream.read(NUM_FIRST_BYTES)
    except OSError:
        return None
    return LFS_POINTER if is_lfs_pointer(first) else kind_of_content(first)
