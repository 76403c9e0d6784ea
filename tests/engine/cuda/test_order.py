"""Whole engines with adapters that come and go during traffic: every read of a page is ordered before its reuse."""

from collections.abc import Callable
from pathlib import Path

import pytest
from recording_device import Launch, OrderError, RecordingDevice, check_order
from tiny import make_adapter

from blora.engine import LLM, SamplingParams
from blora.engine.cuda.copies import PageCopier
from blora.engine.memory.arena import Arena

from .conftest import PageWatch

pytestmark = pytest.mark.slow

Pair = Callable[..., tuple[LLM, LLM]]
FEW = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)


@pytest.fixture(scope="module")
def adapters(wide_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ordered")
    modules = ["q_proj", "down_proj"]
    return {
        f"a{i}": make_adapter(wide_model, folder / str(i), i, r=4 + 8 * (i % 2), target_modules=modules)
        for i in range(4)
    }


def run(llm: LLM, adapters: dict[str, Path]) -> list[tuple[int, ...]]:
    """Runs more adapters than the arena holds, each for two short requests, beside a base row that goes on."""
    for name, folder in adapters.items():
        llm.load_adapter(name, folder)
    uses = [None, *adapters, None, *adapters]
    outputs = llm.generate([f"row {i}" for i in range(len(uses))], FEW, lora_request=uses, use_tqdm=False)
    return [tuple(output.outputs[0].token_ids) for output in outputs]


OPTIONS = {"memory": "112kB", "max_num_seqs": 3, "adapter_copy_bytes": 20_000}


def test_adapters_that_come_and_go(
    watch: PageWatch,
    make_pair: Pair,
    wide_model: Path,
    adapters: dict[str, Path],
    device: RecordingDevice,
    last_arena: Callable[[], Arena],
) -> None:
    reference, cuda = make_pair(wide_model, **OPTIONS)
    device.watch(last_arena().pages)
    assert run(cuda, adapters) == run(reference, adapters)
    assert cuda.get_info().num_evicted_adapters >= 2
    check_order(device.log)
    launches = [entry for entry in device.log if isinstance(entry, Launch)]
    copied = {page for entry in launches if entry.name == "copy" for page in entry.writes}
    read = {page for entry in launches if entry.name == "lora" for page in entry.reads}
    assert copied & watch.written and copied == read  # pages change hands


@pytest.mark.parametrize("forgotten", ["order", "note_step"])
@pytest.mark.usefixtures("watch")
def test_what_is_forgotten_is_found(
    make_pair: Pair,
    wide_model: Path,
    adapters: dict[str, Path],
    device: RecordingDevice,
    forgotten: str,
    monkeypatch: pytest.MonkeyPatch,
    last_arena: Callable[[], Arena],
) -> None:
    monkeypatch.setattr(PageCopier, forgotten, lambda *_: None)
    _, cuda = make_pair(wide_model, **OPTIONS)
    device.watch(last_arena().pages)
    run(cuda, adapters)
    with pytest.raises(OrderError):
        check_order(device.log)
