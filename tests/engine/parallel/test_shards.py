"""Shards in their own processes: an engine of two gives the tokens of one process, and ends when one of them ends."""

import asyncio
import contextlib
import gc
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from adapter_kinds import make_kinds
from compare import assert_same_tokens
from mixed_batches import Solo, Troubles, random_row, run_batch
from processes import ENGINE, child_that_runs, children_of, is_running, wait_until_ended
from tiny import make_adapter
from watched import count_calls, watch_made

from blora.adapters.device_pool import DevicePool
from blora.engine import LLM, AsyncLLM, EngineStartError, SamplingParams
from blora.engine.config import EngineConfig
from blora.engine.cuda.sizing import largest_step
from blora.engine.errors import EngineBroken, EngineUnavailable
from blora.engine.model.ops import TorchOps
from blora.engine.model.shard_group import ConnectedGroup, MuteGroup
from blora.engine.parallel import shards as shards_module
from blora.engine.startup.assembly import plan_shard
from blora.engine.step import runner as runner_module

pytestmark = pytest.mark.slow

NEAR = 2e-4  # difference of logprobs that another order of float32 sums may give
GREEDY = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True, logprobs=2, prompt_logprobs=1)
PROMPTS = ["a first prompt", "another <go> one that is a little longer", "x"]
OPTIONS: dict[str, Any] = {"backend": "reference", "block_size": 4}


@dataclass(frozen=True)
class World:
    model: Path
    adapters: dict[str, str]
    one: LLM
    two: LLM


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("parallel")
    model, kinds = make_kinds(folder)
    kinds["pattern"] = make_adapter(
        model, folder / "pattern", 30, r=8, rank_pattern={"q_proj": 3, r"layers.1.mlp.down_proj": 5}
    )
    one = LLM(model, memory="16MB", **OPTIONS)
    tokens = one.get_tokenizer().encode("<go>")
    kinds["activated"] = make_adapter(model, folder / "activated", 31, r=3, alora_invocation_tokens=tokens)
    adapters = {name: str(path) for name, path in kinds.items()}
    two = LLM(model, memory="8MB", max_num_batched_tokens=50, tensor_parallel_size=2, **OPTIONS)
    try:
        for name, path in adapters.items():
            for llm in (one, two):
                llm.load_adapter(name, path)
        yield World(model, adapters, one, two)
        two.check_idle()
    finally:
        two.close()


def test_every_kind_of_adapter_in_one_mixed_batch(world: World) -> None:
    uses: list[Any] = [None, *world.adapters, {"plain": 0.5, "lora-bias": -1.0}, ("bias-all", "pattern")]
    batch = [(prompt, use) for prompt in PROMPTS for use in uses if use != "activated" or "<go>" in prompt]
    prompts, adapters = [prompt for prompt, _ in batch], [use for _, use in batch]
    expected, actual = (
        llm.generate(prompts, GREEDY, lora_request=adapters, use_tqdm=False) for llm in (world.one, world.two)
    )
    for entry, one, two in zip(batch, expected, actual, strict=True):
        assert_same_tokens(one.outputs[0], two.outputs[0], entry)
        told = zip(one.prompt_logprobs or (), two.prompt_logprobs or (), strict=True)
        for position, (wanted, found) in enumerate(told):
            for token, logprob in (wanted or {}).items():
                assert abs(logprob.logprob - (found or {})[token].logprob) < NEAR, (entry, position)
    assert len({tuple(output.outputs[0].token_ids) for output in actual}) > len(batch) * 3 // 4


def test_sampled_and_penalised_tokens_are_those_of_one_process(world: World) -> None:
    sampling = SamplingParams(temperature=0.8, top_p=0.9, top_k=30, seed=3, n=2, max_tokens=8, repetition_penalty=1.2)
    uses = [None, "both", "added-lora"]
    one, two = (llm.generate(PROMPTS, sampling, lora_request=uses, use_tqdm=False) for llm in (world.one, world.two))
    assert [[o.token_ids for o in output.outputs] for output in one] == [
        [o.token_ids for o in output.outputs] for output in two
    ]


def test_adapters_add_no_communication(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {}
    sampling = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    world.two.generate(PROMPTS[1], sampling, lora_request="plain", use_tqdm=False)  # makes it resident
    for use in (None, "plain", "dora-tables", "added-tables", {"plain": 1.0, "pattern": 0.5}):
        with monkeypatch.context() as patch:
            collectives = [count_calls(patch, ConnectedGroup, name) for name in ("all_reduce", "gather")]
            world.two.generate([PROMPTS[1]], sampling, lora_request=[use], use_tqdm=False)
        counts[str(use)] = sum(map(len, collectives))
    # Collectives in each of three steps: one for the embedding, two for each of two layers, one for the logits.
    assert set(counts.values()) == {3 * 6}, counts


@pytest.mark.grid
@pytest.mark.usefixtures("blind_forecast")
def test_rows_in_random_batches_equal_their_runs_in_one_process(world: World, cases: Callable[[int, int], int]) -> None:
    names = [name for name in world.adapters if name != "activated"]
    sizes = sorted(world.two.get_adapter(name).num_bytes // 2 for name in names)
    page_bytes = world.two.get_info().page_bytes
    solo = Solo(LLM(world.model, memory="16MB", enable_prefix_caching=False, adapters=world.adapters, **OPTIONS))
    llm = LLM(
        world.model,
        memory=sizes[-1] + sizes[-2] + 16 * page_bytes,  # in each shard; the other adapters are swapped
        adapters=world.adapters,
        tensor_parallel_size=2,
        max_num_batched_tokens=64,
        **OPTIONS,
    )
    try:
        num_compared, rng = 0, random.Random(0)
        while num_compared < cases(20, 90) or (troubles_of(llm).num_preempted < 2 and num_compared < 300):
            rows = [random_row(rng, names) for _ in range(30)]
            for index, output in run_batch(llm, rows, rng).items():
                assert_same_tokens(solo.run(rows[index]), output, rows[index])
                num_compared += 1
        troubles = troubles_of(llm)
        assert min(troubles.num_preempted, troubles.num_cached, troubles.num_evicted) >= 2, troubles
        llm.check_idle()
    finally:
        llm.close()


def troubles_of(llm: LLM) -> Troubles:
    """Returns the counts so far. The number of preempted rows depends on the speed of copies."""
    troubles = Troubles()
    troubles.count(llm)
    return troubles


def test_adapters_come_and_go_in_all_shards(world: World) -> None:
    for _ in range(2):
        for llm in (world.one, world.two):
            llm.load_adapter("other", world.adapters["dora-bias"])
        one, two = (
            llm.generate("a prompt", GREEDY, lora_request="other", use_tqdm=False) for llm in (world.one, world.two)
        )
        assert_same_tokens(one[0].outputs[0], two[0].outputs[0])
        for llm in (world.one, world.two):
            llm.unload_adapter("other")
    report = world.two.inspect_adapter(world.adapters["plain"])
    info = world.two.get_adapter("plain")
    assert (report.num_pages, report.num_host_bytes) == (info.num_pages, info.num_bytes)
    assert info.num_bytes == 2 * info.num_pages * world.two.get_info().page_bytes


def start_two(model: Path, **options: Any) -> LLM:
    return LLM(model, **{"memory": "2MB", "tensor_parallel_size": 2} | OPTIONS | options)


def start_two_and_see(model: Path, **options: Any) -> tuple[LLM, shards_module.ShardProcess]:
    """The other shard's process, too."""
    with pytest.MonkeyPatch.context() as patch:
        last_shards = watch_made(patch, shards_module.Shards)
        llm = start_two(model, **options)
        (other,) = last_shards().others
    return llm, other


def test_native_kernels_are_refused(world: World) -> None:
    with pytest.raises(EngineStartError, match="2 shards have to add up"):
        start_two(world.model, backend="cpu")


def test_a_shard_that_cannot_start_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "MODULE", "blora.engine.no_such_shard")
    with pytest.raises(EngineStartError, match="shard 1 has ended with status 1 while it started"):
        start_two(world.model)


def test_a_shard_that_dies_ends_the_engine(world: World) -> None:
    llm, other = start_two_and_see(world.model)
    stream = llm.stream(PROMPTS, SamplingParams(temperature=0, max_tokens=50, ignore_eos=True))
    next(stream)
    other.process.kill()
    with pytest.raises(EngineBroken, match="shard 1 has ended with status -9"):
        for _ in stream:
            pass
    with pytest.raises(EngineBroken, match="shard 1 has ended"):
        llm.generate("x", use_tqdm=False)
    llm.close()


def test_a_model_that_fails_in_the_first_shard_alone_ends_the_engine(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, other = start_two_and_see(world.model)

    def fail(*_: Any) -> None:
        raise ArithmeticError("no norm")

    monkeypatch.setattr(TorchOps, "add_norm", fail)
    with pytest.raises(EngineBroken, match="ArithmeticError: no norm"):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert other.process.wait(5) == -signal.SIGKILL
    llm.close()


@pytest.mark.parametrize("what", ["sample", "token_logprobs", "build_batch"])
def test_what_one_row_makes_go_wrong_outside_the_model_ends_that_row_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The error comes before the step is sent, between two collectives, or after them. Later requests get answers."""
    original, guilty = getattr(runner_module, what), world.two.get_tokenizer().encode(PROMPTS[1])

    def fail(first: Any, second: Any, *others: Any) -> Any:
        """Fails for the rows, or tokens, of one prompt."""
        rows = {"sample": second, "build_batch": first, "token_logprobs": ()}[what]
        if what == "token_logprobs":
            is_guilty = list(second) == guilty[1 : 1 + len(second)]
        else:
            is_guilty = any(list(row.token_ids[: len(guilty)]) == guilty for row in rows)
        if is_guilty:
            raise ArithmeticError("this row")
        return original(first, second, *others)

    expected = world.one.generate(PROMPTS, GREEDY, use_tqdm=False)
    monkeypatch.setattr(runner_module, what, fail)
    actual = world.two.generate(PROMPTS, GREEDY, use_tqdm=False)
    monkeypatch.undo()
    assert [output.outputs[0].finish_reason for output in actual] == ["length", "error", "length"]
    for index in (0, 2):
        assert_same_tokens(expected[index].outputs[0], actual[index].outputs[0])
    again = world.two.generate(PROMPTS, GREEDY, use_tqdm=False)
    for one, two in zip(expected, again, strict=True):
        assert_same_tokens(one.outputs[0], two.outputs[0])


def test_a_copy_that_fails_in_the_first_shard_is_made_again_in_all(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, other = start_two_and_see(world.model)
    llm.load_adapter("it", world.adapters["pattern"])

    def fail(*_: Any) -> None:
        raise OSError("no copy")

    with monkeypatch.context() as patch:
        patch.setattr(DevicePool, "copy", fail)
        for output in llm.generate(PROMPTS, GREEDY, lora_request="it", use_tqdm=False):
            assert "could not be copied" in str(output.outputs[0].error)
    one, two = (
        engine.generate(PROMPTS, GREEDY, lora_request=name, use_tqdm=False)
        for engine, name in ((world.one, "pattern"), (llm, "it"))
    )
    for expected, actual in zip(one, two, strict=True):
        assert_same_tokens(expected.outputs[0], actual.outputs[0])
    llm.check_idle()
    llm.close()
    llm.close()  # which changes nothing
    assert other.process.returncode is not None


class NeverDone:
    """A collective of a GPU whose other shard is gone."""

    def is_completed(self) -> bool:
        return False


@pytest.mark.parametrize("what", ["rows that are sampled", "a part of a prompt", "prompt_logprobs"])
def test_a_shard_that_dies_is_noticed_where_collectives_tell_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Over NCCL the host is done with a collective at once, and would wait for the device forever."""
    llm, other = start_two_and_see(world.model, max_num_batched_tokens=8)

    def begun(group: ConnectedGroup, collective: Any) -> None:
        group._last = collective
        with contextlib.suppress(RuntimeError):
            collective.wait()
            return
        group._last = NeverDone()

    monkeypatch.setattr(ConnectedGroup, "_begun", begun)
    for reader in ("sample", "token_logprobs"):
        monkeypatch.setattr(runner_module, reader, lambda *_: pytest.fail("the host waits for the device"))
    prompts = {"rows that are sampled": "x", "a part of a prompt": "x" * 40, "prompt_logprobs": "x" * 6}
    sampling = SamplingParams(max_tokens=3, prompt_logprobs=1 if what == "prompt_logprobs" else None)
    other.process.kill()
    other.process.wait()
    monkeypatch.setattr(other.channel, "send", lambda *_: None)  # the shard gets the message and then dies
    with pytest.raises(EngineBroken, match="shard 1 has ended with status -9"):
        llm.generate(prompts[what], sampling, use_tqdm=False)
    llm.close()


def test_a_forked_child_does_not_end_its_parents_shards() -> None:
    class Group:
        num_aborted = 0

        def abort(self) -> None:
            self.num_aborted += 1

    shards, group = shards_module.Shards(()), Group()
    shards.attach(group)  # type: ignore[arg-type]
    child = os.fork()
    if not child:
        shards.close()  # as the collector of garbage does
        os._exit(group.num_aborted)
    assert os.waitpid(child, 0)[1] == 0
    shards.close()
    assert group.num_aborted == 1


def interrupt_sending(monkeypatch: pytest.MonkeyPatch, other: shards_module.ShardProcess) -> None:
    """Raises KeyboardInterrupt when a message has just been sent."""
    send = other.channel.send

    def interrupted(*arguments: Any) -> None:
        send(*arguments)
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(other.channel, "send", interrupted)


@pytest.mark.parametrize("what", ["step", "adapter"])
def test_an_interrupt_while_a_shard_is_told_ends_the_engine(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The other shards may know of a step that the first one has dropped; the engine must never give a wrong sum."""
    llm, other = start_two_and_see(world.model)
    try:
        interrupt_sending(monkeypatch, other)
        with pytest.raises(KeyboardInterrupt):
            if what == "step":
                llm.generate(PROMPTS, GREEDY, use_tqdm=False)
            else:
                llm.load_adapter("it", world.adapters["plain"])
        with pytest.raises(EngineBroken, match="KeyboardInterrupt"):
            llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    finally:
        llm.close()


def test_no_descriptor_is_left_of_an_adapter_that_no_shard_takes(world: World) -> None:
    llm, other = start_two_and_see(world.model)
    other.process.kill()
    other.process.wait()
    before = num_descriptors()
    for _ in range(3):
        with pytest.raises(EngineBroken, match="shard 1 has ended"):
            llm.load_adapter("it", world.adapters["plain"])
    assert num_descriptors() == before
    llm.close()


FORGETFUL_SHARD = """
from blora.engine.processes import shard

load, failures = shard.ShardLoop._load, [MemoryError]

def fail_once(self, table, descriptor):
    load(self, table, descriptor)
    if failures:
        raise failures.pop()

shard.ShardLoop._load = fail_once
shard.main()
"""


def test_an_adapter_that_one_shard_cannot_take_is_refused_and_the_engine_goes_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "forgetful_shard.py").write_text(FORGETFUL_SHARD)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(shards_module, "MODULE", "forgetful_shard")
    llm = start_two(world.model)
    before = num_descriptors()
    with pytest.raises(RuntimeError, match="shard 1 cannot take adapter [0-9a-f]+: MemoryError"):
        llm.load_adapter("it", world.adapters["pattern"])
    assert num_descriptors() == before
    llm.load_adapter("it", world.adapters["pattern"])
    one, two = (
        engine.generate(PROMPTS, GREEDY, lora_request=name, use_tqdm=False)
        for engine, name in ((world.one, "pattern"), (llm, "it"))
    )
    for expected, actual in zip(one, two, strict=True):
        assert_same_tokens(expected.outputs[0], actual.outputs[0])
    llm.check_idle()
    llm.close()


def num_descriptors() -> int:
    gc.collect()  # the garbage of earlier tests may hold some
    return len(list(Path("/proc/self/fd").iterdir()))


def test_shards_may_keep_as_many_adapters_as_the_system_lets_them() -> None:
    """Each adapter is an open descriptor in every shard."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        shards = shards_module.start_shards(2)
        try:
            (other,) = shards.others
            assert resource.prlimit(other.process.pid, resource.RLIMIT_NOFILE)[0] == hard
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
        finally:
            shards.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


BROKEN_SHARD = """
import os, time
from blora.engine.processes import shard
from blora.engine.startup import assembly

def fail(*_):
    {failure}

assembly.{what} = fail
shard.main()
"""


@pytest.mark.parametrize(
    ("what", "failure", "reason"),
    [
        ("Assembly.build", "raise MemoryError('no arena')", "shard 1: MemoryError: no arena"),
        ("ConnectedGroup", "os._exit(3)", "shard 1 has ended with status 3 while it started"),
    ],
)
def test_a_shard_that_fails_once_it_is_loaded_is_told(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, failure: str, reason: str
) -> None:
    (tmp_path / "broken_shard.py").write_text(BROKEN_SHARD.format(what=what, failure=failure))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(shards_module, "MODULE", "broken_shard")
    with pytest.raises(EngineStartError, match=reason):
        start_two(world.model)


@pytest.mark.parametrize("while_loading", [True, False])
def test_a_shard_that_is_busy_ends_with_the_first_one(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, while_loading: bool
) -> None:
    """The shard would not read its channel: it loads for minutes, or waits for a GPU that waits for a process that is
    gone."""
    what = "ShardPlan.load" if while_loading else "ConnectedGroup"
    text = BROKEN_SHARD.format(what=what, failure=f"open({str(tmp_path / 'busy')!r}, 'w').close(); time.sleep(600)")
    (tmp_path / "busy_shard.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(shards_module, "MODULE", "busy_shard")
    shards = shards_module.start_shards(2)
    (other,) = shards.others
    config = EngineConfig(model=str(world.model), tensor_parallel_size=2, **OPTIONS)
    shards.load(config, world.model)
    while not (tmp_path / "busy").exists():
        assert other.process.poll() is None
        time.sleep(0.01)
    started = time.monotonic()
    shards.close()
    assert other.process.returncode == -signal.SIGKILL and time.monotonic() - started < 60  # of the 600


STARTS_AND_WAITS = """
import sys, time
from blora.engine import LLM
llm = LLM(sys.argv[1], backend="reference", memory="2MB", tensor_parallel_size=2)
print("started", flush=True)
time.sleep(600)
"""


def test_shards_end_when_the_first_one_is_killed_and_leave_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, "-c", STARTS_AND_WAITS, str(world.model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "started\n"
        (pid,) = children_of(first.pid)
        assert is_running(pid)
        first.kill()
    wait_until_ended(pid)
    assert not list(tmp_path.iterdir())


async def async_answer(llm: AsyncLLM, name: str | None) -> list[int]:
    final = [output async for output in llm.generate("a prompt", GREEDY, lora_request=name)][-1]
    return list(final.outputs[0].token_ids)


def test_a_server_restarts_an_engine_one_of_whose_shards_has_died(world: World) -> None:
    async def run() -> None:
        expected = world.one.generate("a prompt", GREEDY, lora_request="dora-bias", use_tqdm=False)[0].outputs[0]
        options = {"memory": "2MB", "tensor_parallel_size": 2} | OPTIONS
        async with AsyncLLM(world.model, adapters={"it": world.adapters["dora-bias"]}, **options) as llm:
            assert await async_answer(llm, "it") == list(expected.token_ids)
            engine = child_that_runs(ENGINE)
            (shard,) = children_of(engine)
            os.kill(shard, signal.SIGKILL)
            for _ in range(600):  # the engine is idle, and notices the end without a step
                if llm.is_serving and child_that_runs(ENGINE) != engine:
                    break
                await asyncio.sleep(0.05)
            for _ in range(100):
                try:
                    assert await async_answer(llm, "it") == list(expected.token_ids)
                    break
                except EngineUnavailable:
                    await asyncio.sleep(0.1)
            else:
                pytest.fail("the engine did not come back")
            (another,) = children_of(child_that_runs(ENGINE))
        assert not is_running(shard) and not is_running(another)

    asyncio.run(run())


def test_a_trial_of_one_shard_talks_to_nobody(world: World) -> None:
    """The arena of a GPU is sized this way: one shard runs the largest step before the others are there."""
    config = EngineConfig(model=str(world.model), tensor_parallel_size=2, max_num_batched_tokens=48, **OPTIONS)
    plan = plan_shard(config, world.model, 0)
    step, num_pages = largest_step(plan.limits, config.block_size, plan.max_model_len)
    group = MuteGroup(0, 2)
    parts = plan.load().build(num_pages, group)
    results = parts.runner.execute(step)
    assert len(results) == len(step.rows) and all(result.error is None for result in results.values())
    assert group.num_collectives == 0
