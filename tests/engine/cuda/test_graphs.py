"""Decode steps as graphs give the tokens of eager steps while adapters come and go, without another capture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recording_device import RecordingDevice, RecordingGraph, check_order
from tiny import make_adapter
from torch import Tensor

from blora.engine import LLM, SamplingParams
from blora.engine.cuda.graphs import DecodeGraphs, Sized
from blora.engine.cuda.sizing import graph_sizes
from blora.engine.memory.arena import Arena
from blora.engine.model_files.read_config import load_model_config

from .conftest import PageWatch

pytestmark = pytest.mark.slow

Pair = Callable[..., tuple[LLM, LLM]]
Graphs = Callable[[], DecodeGraphs]
OPTIONS = {"max_num_seqs": 6, "enforce_eager": False}
MODULES = ["q_proj", "down_proj"]


def tokens(llm: LLM, uses: list[Any], max_tokens: int = 4) -> list[tuple[int, ...]]:
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    outputs = llm.generate([f"row {i}" for i in range(len(uses))], sampling, lora_request=uses, use_tqdm=False)
    return [tuple(output.outputs[0].token_ids) for output in outputs]


def buffers(sized: Sized) -> list[int]:
    table = sized.attention.new.table
    tensors: list[Tensor] = [
        sized.token_ids, sized.positions, sized.attention.new.rows, sized.attention.new.positions,
        table.indptr, table.indices, table.last_page_len, sized.without_lora.hidden,
    ]  # fmt: skip
    for captured in sized.with_lora.values():
        assert captured.lora is not None
        tensors += [captured.lora.content, captured.lora.h, captured.hidden]
    return [tensor.data_ptr() for tensor in tensors]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """For each step that was offered to the graphs: the rows of its logits, or None if it fitted no graph."""
    steps: list[int | None] = []
    original = DecodeGraphs.run

    def run(self: DecodeGraphs, *args: Any) -> Tensor | None:
        logits = original(self, *args)
        steps.append(None if logits is None else len(logits))
        return logits

    monkeypatch.setattr(DecodeGraphs, "run", run)
    return steps


@pytest.mark.parametrize(
    ("max_num_seqs", "sizes"),
    [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8]), (30, [1, 2, 4, 8, 16, 24, 30])],
)
def test_sizes(max_num_seqs: int, sizes: list[int]) -> None:
    assert graph_sizes(max_num_seqs) == sizes


def test_replays_give_the_tokens_of_eager_steps(
    watch: PageWatch,
    make_pair: Pair,
    wide_model: Path,
    device: RecordingDevice,
    counted: list[int | None],
    last_graphs: Graphs,
    last_arena: Callable[[], Arena],
) -> None:
    reference, cuda = make_pair(wide_model, **OPTIONS)
    assert last_graphs().sizes == [1, 2, 4, 6]
    num_captured = len(device.graphs)
    watch.written.clear()
    scratch = cuda.get_info().num_pages
    assert len(last_arena().pages) == scratch + 1
    for num_rows in (1, 2, 3, 5, 6):
        assert tokens(cuda, [None] * num_rows, 6) == tokens(reference, [None] * num_rows, 6)
        is_padded = num_rows in (3, 5)
        assert (scratch in watch.written) == is_padded, num_rows  # only rows of padding write there
        watch.written.clear()
    assert {1, 2, 3, 5, 6, None} == set(counted)
    assert len(device.graphs) == num_captured and sum(graph.num_replays for graph in device.graphs) >= 20
    check_order(device.log)


@pytest.mark.usefixtures("watch")
def test_adapters_of_any_rank_come_and_go_without_a_capture(
    make_pair: Pair,
    wide_model: Path,
    device: RecordingDevice,
    tmp_path: Path,
    counted: list[int | None],
    last_graphs: Graphs,
    last_arena: Callable[[], Arena],
) -> None:
    reference, cuda = make_pair(wide_model, **OPTIONS | {"max_num_seqs": 2})
    graphs = last_graphs()
    before = {size: buffers(graphs._sized[size]) for size in graphs.sizes}
    num_captured = len(device.graphs)
    device.watch(last_arena().pages)
    answers = set()
    for index, rank in enumerate((4, 40, 1)):
        folder = make_adapter(wide_model, tmp_path / str(rank), index, r=rank, target_modules=MODULES)
        for llm in (reference, cuda):
            llm.load_adapter("a", folder)  # another adapter under the same name
        assert tokens(cuda, ["a", None], 3) == tokens(reference, ["a", None], 3)
        answers |= {*tokens(cuda, ["a"], 3), *tokens(cuda, [None], 3)}
    assert len(answers) >= 3
    assert {1, 2} <= set(counted)
    assert len(device.graphs) == num_captured
    assert {size: buffers(graphs._sized[size]) for size in graphs.sizes} == before
    check_order(device.log)


def test_base_rows_launch_no_lora_kernel(
    make_pair: Pair, wide_model: Path, monkeypatch: pytest.MonkeyPatch, last_graphs: Graphs
) -> None:
    _, cuda = make_pair(wide_model, **OPTIONS | {"max_num_seqs": 1})
    (with_lora,) = last_graphs()._sized[1].with_lora.values()
    monkeypatch.setattr(with_lora.graph, "replay", lambda: pytest.fail("a step of base rows"))
    assert tokens(cuda, [None])


def test_rows_of_one_adapter_share_its_weights(
    make_pair: Pair, wide_model: Path, tmp_path: Path, counted: list[int | None], last_graphs: Graphs
) -> None:
    """They do so in eager steps too: each row does not read all weights again."""
    reference, cuda = make_pair(wide_model, **OPTIONS)
    folder = make_adapter(wide_model, tmp_path / "a", 3, r=4, target_modules=MODULES)
    for llm in (reference, cuda):
        llm.load_adapter("a", folder)
    assert tokens(cuda, ["a"] * 6, 3) == tokens(reference, ["a"] * 6, 3)
    assert 6 in counted
    sized = last_graphs()._sized[6]
    assert sized.with_lora.keys() == {1, 16}
    single, shared = sized.with_lora[1], sized.with_lora[16]
    assert isinstance(single.graph, RecordingGraph) and isinstance(shared.graph, RecordingGraph)
    assert single.graph.num_replays == 0 < shared.graph.num_replays
    assert shared.lora is not None
    assert shared.lora.content[:3].tolist() == [1, 1, 6]  # uses, strips, rows


def test_a_graph_keeps_nothing_as_wide_as_the_vocabulary(
    make_pair: Pair, wide_model: Path, last_graphs: Graphs
) -> None:
    """What it returns is its own: logits of all sizes would be gigabytes."""
    make_pair(wide_model, **OPTIONS)
    config = load_model_config(wide_model)
    assert config.vocab_size > config.hidden_size
    for sized in last_graphs()._sized.values():
        for captured in (sized.without_lora, *sized.with_lora.values()):
            assert isinstance(captured.graph, RecordingGraph)
            assert captured.graph.num_kept_bytes == sized.num_rows * config.hidden_size * 2


def run_composed(llm: LLM, folders: list[Path]) -> list[tuple[int, ...]]:
    for index, folder in enumerate(folders):
        llm.load_adapter(f"a{index}", folder)
    return tokens(llm, [{"a0": 0.5, "a1": -1.0}], 3)


def test_what_does_not_fit_runs_eagerly(
    make_pair: Pair, wide_model: Path, tmp_path: Path, counted: list[int | None]
) -> None:
    """The graph of one row holds one adapter, and the row has two."""
    folders = [make_adapter(wide_model, tmp_path / str(i), i, r=2, target_modules=MODULES) for i in range(2)]
    reference, cuda = make_pair(wide_model, **OPTIONS | {"max_num_seqs": 1})
    assert run_composed(cuda, folders) == run_composed(reference, folders)
    assert set(counted) == {None}


def test_an_adapter_of_the_head_runs_eagerly(
    make_pair: Pair, wide_model: Path, tmp_path: Path, counted: list[int | None]
) -> None:
    folder = make_adapter(wide_model, tmp_path / "head", 3, r=2, target_modules=["lm_head", "q_proj"])
    reference, cuda = make_pair(wide_model, **OPTIONS | {"max_num_seqs": 1})
    for llm in (reference, cuda):
        llm.load_adapter("a", folder)
    assert tokens(cuda, ["a"], 3) == tokens(reference, ["a"], 3)
    assert set(counted) == {None}


def test_rows_beyond_the_largest_size_run_eagerly(
    make_pair: Pair, wide_model: Path, counted: list[int | None], last_graphs: Graphs
) -> None:
    reference, cuda = make_pair(wide_model, **OPTIONS)
    for size in (4, 6):
        del last_graphs()._sized[size]
    assert tokens(cuda, [None] * 3, 3) == tokens(reference, [None] * 3, 3)
    assert set(counted) == {None}


def test_eager_engines_capture_nothing(
    make_pair: Pair, wide_model: Path, device: RecordingDevice, last_graphs: Graphs
) -> None:
    _, cuda = make_pair(wide_model, enforce_eager=True)
    assert tokens(cuda, [None]) and not device.graphs and not last_graphs().sizes


def test_logits_that_are_kept_are_not_those_of_the_next_step(make_pair: Pair, wide_model: Path) -> None:
    """A sampled row with log-probabilities reads its own logits."""
    reference, cuda = make_pair(wide_model, **OPTIONS | {"max_num_seqs": 2})
    sampling = SamplingParams(temperature=0.8, seed=1, max_tokens=5, logprobs=2, ignore_eos=True)
    results = [llm.generate(["a", "b"], sampling, use_tqdm=False) for llm in (reference, cuda)]
    for expected, actual in zip(*results, strict=True):
        assert actual.outputs[0].token_ids == expected.outputs[0].token_ids
        ours, theirs = (
            torch.tensor([step[token].logprob for step, token in zip(o.logprobs, o.token_ids, strict=True)])
            for o in (actual.outputs[0], expected.outputs[0])
        )
        torch.testing.assert_close(ours, theirs, atol=0.03, rtol=0)
