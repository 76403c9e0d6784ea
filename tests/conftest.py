"""Fixtures that tests share: tiny models made once, the real one, and engines that are checked for leaks after each
test."""

import os

# Before torch is imported: there is no GPU to compile kernels for, and processes that run beside each other have one
# thread each. Tiny tensors are computed faster by one; tests that need two ask for them, and where the second finds no
# core the first does not keep its own busy with waiting.
os.environ |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import quick_interpreter
import real_flashinfer
from hang_limit import HangLimit
from hypothesis import HealthCheck, settings
from shared_engine import shared_engine
from tiny import make_adapter, make_model
from tiny_transformers import Tiny

from blora.engine import LLM
from blora.scheduler.forecast import MemoryForecast

# A busy machine must not make a test fail.
settings.register_profile("few", max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("all", settings.get_profile("few"), max_examples=400)

REAL_MODEL = Path(__file__).parent.parent / ".cache/models/SmolLM2-135M-Instruct"

# Ranks 1 to 64 and unequal modules, patterns included.
ADAPTERS: dict[str, dict[str, Any]] = {
    "r1": {"r": 1, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj"]},
    "r2": {"r": 2, "lora_alpha": 1, "target_modules": ["down_proj"]},
    "r4": {"r": 4, "lora_alpha": 8},
    "r8": {"r": 8, "lora_alpha": 16, "target_modules": ["o_proj", "gate_proj"], "use_rslora": True},
    "r16": {"r": 16, "lora_alpha": 16, "target_modules": ["k_proj", "up_proj"]},
    "r24": {"r": 24, "lora_alpha": 12, "target_modules": "all-linear"},
    "pattern": {
        "r": 8,
        "lora_alpha": 8,
        "rank_pattern": {"q_proj": 3, r"layers.1.mlp.down_proj": 5},
        "alpha_pattern": {"v_proj": 20},
    },
    "r64": {"r": 64, "lora_alpha": 32, "layers_to_transform": [1]},
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-cases", action="store_true", help="draw as many random cases as make test-grids")


def pytest_configure(config: pytest.Config) -> None:
    quick_interpreter.install()
    config.pluginmanager.register(HangLimit(config))
    settings.load_profile("all" if config.getoption("all_cases") else "few")


@pytest.fixture(scope="session")
def cases(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """Of how many random cases a test has: a few in each run of the suite, and all where that is asked for."""
    return lambda few, everything: everything if request.config.getoption("all_cases") else few


def pytest_collection_finish() -> None:
    """What was imported stays: no collection of garbage has to look at it again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    shared_engine.close()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Engines refer to themselves: without a collection those of many files would be in memory at once. What is left
    then stays, such as the modules that were imported meanwhile; the collection after each engine passes it over."""
    if nextitem is None or item.path != nextitem.path:
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def tiny_adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: make_adapter(tiny_model, folder / name, seed, **fields)
        for seed, (name, fields) in enumerate(ADAPTERS.items())
    }


@pytest.fixture(scope="session")
def real_model() -> Path:
    assert (REAL_MODEL / "config.json").exists(), "run `make model` first"
    return REAL_MODEL


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The installed flashinfer, which can be imported without a GPU."""
    return real_flashinfer.load(tmp_path_factory.mktemp("flashinfer"))


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest) -> str:
    """The backends to test. "auto" is not one of them: kernels that were not built must fail the tests, not hide behind
    the reference."""
    return str(request.param)


@pytest.fixture
def make_llm(tiny_model: Path, backend: str) -> Iterator[Callable[..., LLM]]:
    """Builds engines on either backend. When the test ends, each engine has to have all its pages and requests back."""
    made: list[LLM] = []

    def make(model: Path = tiny_model, **options: Any) -> LLM:
        defaults = {"backend": backend, "memory": "2MB", "block_size": 4, "max_num_batched_tokens": 64}
        llm = LLM(str(model), **defaults | options)
        made.append(llm)
        return llm

    yield make
    for llm in made:
        llm.check_idle()
    made.clear()
    gc.collect()


@pytest.fixture
def blind_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has engines in this process foresee no need of memory, so that they admit requests that have to be preempted."""
    monkeypatch.setattr(MemoryForecast, "num_blocks", lambda *_: 0)


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path / "model")


@pytest.fixture
def make_tiny(tmp_path: Path) -> Callable[[str], Tiny]:
    return lambda name: Tiny(tmp_path / name)
