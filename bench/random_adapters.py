"""Random LoRA adapters in PEFT's format for any model that blora serves: for measurements, not for their answers.

An adapter depends only on its index and its specification: the same call makes the same bytes, and leaves finished
folders alone. Values are small, so that activations stay in a normal range, and B is not zero, so that an adapter
changes the model's output.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from blora.adapters.targets import TargetModule
from blora.engine.model.targets import lora_targets
from blora.engine.model_files.read_config import load_model_config

ALL_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CHANGE = 0.1  # standard deviation of an adapter's change of each output, for inputs of standard deviation 1


def make_adapters(model: Path, folder: Path, count: int, ranks: Sequence[int], modules: Sequence[str]) -> list[Path]:
    """Writes `count` PEFT folders below `folder`, in bfloat16, and returns them; adapter i has ranks[i % len(ranks)].

    model: a Hugging Face folder. modules: such as "q_proj". Raises ValueError for a module that the model lacks.
    """
    if not ranks or min(ranks) < 1:
        raise ValueError(f"ranks: {list(ranks)} are not whole numbers of at least 1")
    targets = _targets(model, modules)
    folders = []
    for index in range(count):
        path = folder / f"{index:04d}"
        _make_adapter(path, index, ranks[index % len(ranks)], targets)
        folders.append(path)
    return folders


def _targets(model: Path, modules: Sequence[str]) -> list[TargetModule]:
    targets = lora_targets(load_model_config(model))
    unknown = set(modules) - {_kind(target) for target in targets}
    if unknown or not modules:
        raise ValueError(f"modules: the model has no {', '.join(sorted(unknown)) or 'module to adapt'}")
    return [target for target in targets if _kind(target) in modules]


def _kind(target: TargetModule) -> str:
    return target.name.rpartition(".")[2]


def _make_adapter(path: Path, seed: int, rank: int, targets: Sequence[TargetModule]) -> None:
    """Writes one folder. The configuration comes last, so that a folder with one is complete."""
    config = json.dumps(_config(rank, targets), indent=2) + "\n"
    if _is_made(path, config, _shapes(rank, targets)):
        return
    path.mkdir(parents=True, exist_ok=True)
    config_file = path / "adapter_config.json"
    config_file.unlink(missing_ok=True)
    save_file(dict(_tensors(seed, rank, targets)), path / "adapter_model.safetensors")
    config_file.write_text(config)


def _config(rank: int, targets: Sequence[TargetModule]) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted({_kind(target) for target in targets}),
    }


def _shapes(rank: int, targets: Sequence[TargetModule]) -> dict[str, tuple[int, int]]:
    """Returns the shape of every tensor, by PEFT's names."""
    shapes = {}
    for target in targets:
        name = f"base_model.model.{target.name}"
        shapes[f"{name}.lora_A.weight"] = (rank, target.in_features)
        shapes[f"{name}.lora_B.weight"] = (target.out_features, rank)
    return shapes


def _is_made(path: Path, config: str, shapes: Mapping[str, tuple[int, int]]) -> bool:
    config_file, weights = path / "adapter_config.json", path / "adapter_model.safetensors"
    if not config_file.is_file() or config_file.read_text() != config or not weights.is_file():
        return False
    with safe_open(weights, framework="numpy") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == shapes  # noqa: SIM118


def _tensors(seed: int, rank: int, targets: Sequence[TargetModule]) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for name, (rows, columns) in _shapes(rank, targets).items():
        scale = columns**-0.5 * (1 if ".lora_A." in name else CHANGE)
        yield name, torch.randn(rows, columns, generator=generator).mul_(scale).bfloat16()
