"""Fixtures of the adapter tests: the tiny model's modules, written down by hand, and a good folder to spoil."""

import shutil
from pathlib import Path

import pytest

from blora.adapters import TargetModule

HIDDEN, KV, MLP = 32, 16, 64

# name, inputs, outputs, site in the layer, offset in the site
MODULES = (
    ("self_attn.q_proj", HIDDEN, HIDDEN, 0, 0),
    ("self_attn.k_proj", HIDDEN, KV, 0, HIDDEN),
    ("self_attn.v_proj", HIDDEN, KV, 0, HIDDEN + KV),
    ("self_attn.o_proj", HIDDEN, HIDDEN, 1, 0),
    ("mlp.gate_proj", HIDDEN, MLP, 2, 0),
    ("mlp.up_proj", HIDDEN, MLP, 2, MLP),
    ("mlp.down_proj", MLP, HIDDEN, 3, 0),
)


@pytest.fixture(scope="session")
def targets() -> tuple[TargetModule, ...]:
    return tuple(
        TargetModule(f"model.layers.{layer}.{name}", num_in, num_out, 4 * layer + site, offset)
        for layer in range(2)
        for name, num_in, num_out, site, offset in MODULES
    )


@pytest.fixture
def folder(tiny_adapters: dict[str, Path], tmp_path: Path) -> Path:
    """A good adapter of rank 4 on every module of both layers; the test may spoil it."""
    return Path(shutil.copytree(tiny_adapters["r4"], tmp_path / "adapter"))
