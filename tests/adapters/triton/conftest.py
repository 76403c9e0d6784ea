"""Tests share their worlds: packing and placing all adapters takes longer than most tests."""

import pytest
import torch
from triton_world import World


@pytest.fixture(scope="session", params=[torch.float32, torch.float16], ids=["float32", "float16"])
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


@pytest.fixture(scope="session")
def exact() -> World:
    return World(torch.float32)
