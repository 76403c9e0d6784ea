"""The promises of the scheduler, one in each test."""

import pytest
from fakes import CheckingRunner, make_request, make_scheduler

from blora.scheduler import CopyCounts, FinishReason, Request, RowUpdate, SamplingParams, Scheduler, Step
from blora.scheduler.prompt_turns import MAX_TENANTS


def run_step(scheduler: Scheduler, runner: CheckingRunner) -> tuple[Step, list[RowUpdate]]:
    step = scheduler.schedule()
    runner.begin_copies(step)
    updates = scheduler.update(step, runner.execute(step))
    scheduler.check_integrity()
    return step, updates


def run_all(scheduler: Scheduler, runner: CheckingRunner) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {}
    for _ in range(1000):
        if not scheduler.has_work:
            return tokens
        for update in run_step(scheduler, runner)[1]:
            tokens.setdefault(update.request_id, []).extend(update.token_ids)
    raise AssertionError("the requests never ended")


def scheduled(step: Step) -> dict[int, int]:
    return {row.request_id: row.num_new_tokens for row in step.rows}


def solo(prompt: list[int], max_tokens: int) -> list[int]:
    scheduler, *_ = make_scheduler(num_pages=64)
    scheduler.add(make_request(0, prompt, max_tokens))
    return run_all(scheduler, CheckingRunner(4))[0]


def test_a_long_prompt_is_computed_in_chunks_while_others_decode() -> None:
    scheduler, *_ = make_scheduler(num_pages=64, max_num_batched_tokens=8)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [1, 2, 3], 9))
    run_step(scheduler, runner)
    scheduler.add(make_request(1, list(range(20)), 2))
    steps = [scheduled(run_step(scheduler, runner)[0]) for _ in range(4)]
    assert steps == [{0: 1, 1: 7}, {0: 1, 1: 7}, {0: 1, 1: 6}, {0: 1, 1: 1}]


def test_full_blocks_of_a_prompt_are_shared_and_the_last_token_is_computed() -> None:
    scheduler, _, pool = make_scheduler(num_pages=16)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [7] * 8, 2))
    run_all(scheduler, runner)
    scheduler.add(make_request(1, [7] * 8, 1))
    step, updates = run_step(scheduler, runner)
    assert scheduled(step) == {1: 4}
    assert updates[0].num_cached_tokens == 4
    assert pool.num_free == 16


@pytest.mark.parametrize(
    "other",
    [
        {"cache_salt": b"mine"},
        {"adapters": (("digest", 1.0),)},
        {"adapters": (("digest", 0.5),)},
        {"adapters": (("other", 2.0),)},
    ],
)
def test_nothing_is_shared_across_salts_adapters_and_scales(other: dict[str, object]) -> None:
    scheduler, residency, _ = make_scheduler(num_pages=32)
    residency.register("digest", 1)
    residency.register("other", 1)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [7] * 9, 1, adapters=(("digest", 2.0),)))
    scheduler.add(make_request(1, [7] * 9, 1))
    run_all(scheduler, runner)
    scheduler.add(make_request(2, [7] * 9, 1, **other))
    _, updates = run_step(scheduler, runner)
    assert [update.num_cached_tokens for update in updates] == [0]


def test_prompt_logprobs_skip_hits() -> None:
    scheduler, *_ = make_scheduler()
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [7] * 9, 1))
    run_all(scheduler, runner)
    sampling = SamplingParams(prompt_logprobs=0, max_tokens=1)
    scheduler.add(make_request(1, [7] * 9, 1, sampling=sampling))
    assert scheduled(run_step(scheduler, runner)[0]) == {1: 9}


def test_a_preempted_request_recomputes_the_same_tokens() -> None:
    scheduler, *_ = make_scheduler(num_pages=6, max_num_batched_tokens=64, is_blind=True)
    runner = CheckingRunner(4)
    prompts = {0: [1, 2, 3, 4, 5], 1: [5, 6, 7, 8, 9], 2: [3, 3, 3]}
    for request_id, prompt in prompts.items():
        scheduler.add(make_request(request_id, prompt, 9))
    tokens = run_all(scheduler, runner)
    assert scheduler.num_preemptions > 0
    assert tokens == {request_id: solo(prompt, 9) for request_id, prompt in prompts.items()}


def test_samples_of_one_prompt_wait_for_its_blocks_and_share_them() -> None:
    scheduler, _, pool = make_scheduler(num_pages=16)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [7] * 10, 5))
    for index in (1, 2):
        scheduler.add(make_request(index, [7] * 10, 5, sample_index=index, leader=0))
    first, _ = run_step(scheduler, runner)
    second, _ = run_step(scheduler, runner)
    assert scheduled(first) == {0: 10}
    assert scheduled(second) == {0: 1, 1: 2, 2: 2}
    assert pool.num_free == 16 - 2 - 3


@pytest.mark.parametrize("end", [FinishReason.ABORT, FinishReason.ERROR])
def test_samples_go_on_when_their_leader_ends_early(end: FinishReason) -> None:
    scheduler, *_ = make_scheduler()
    scheduler.add(make_request(0, [7] * 10, 5))
    scheduler.add(make_request(1, [7] * 10, 2, leader=0))
    scheduler.finish(0, end)
    assert run_all(scheduler, CheckingRunner(4)) == {1: solo([7] * 10, 2)}


def test_more_urgent_requests_go_first_and_push_others_out() -> None:
    scheduler, *_ = make_scheduler(num_pages=4, policy="priority", max_num_batched_tokens=64)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [1] * 11, 4, priority=1))
    run_step(scheduler, runner)
    scheduler.add(make_request(1, [2] * 3, 3, priority=1))
    scheduler.add(make_request(2, [3] * 9, 3, priority=0))
    step, _ = run_step(scheduler, runner)
    assert scheduled(step) == {2: 9}
    tokens = run_all(scheduler, runner)
    assert sorted(tokens) == [0, 1, 2]


def test_a_request_waits_for_its_adapter_while_others_go_on() -> None:
    scheduler, residency, _ = make_scheduler(num_pages=16, copied_pages_per_step=2)
    residency.register("slow", 5)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [1, 2], 6, adapters=(("slow", 1.0),)))
    scheduler.add(make_request(1, [1, 2], 6))
    steps = [scheduled(run_step(scheduler, runner)[0]) for _ in range(3)]
    assert steps == [{1: 2}, {1: 1}, {1: 1, 0: 2}]


def test_an_idle_adapter_is_evicted_whole_and_comes_back() -> None:
    scheduler, residency, pool = make_scheduler(num_pages=8, copied_pages_per_step=8, policy="fcfs")
    runner = CheckingRunner(4)
    for digest in ("one", "two"):
        residency.register(digest, 4)
    for request_id, digest in enumerate(("one", "two", "one")):
        scheduler.add(make_request(request_id, [1] * 6, 2, adapters=((digest, 1.0),)))
    run_all(scheduler, runner)
    assert pool.num_evicted_adapters >= 1
    assert residency.is_resident("one")


def test_unloading_waits_for_the_requests_that_use_the_adapter() -> None:
    scheduler, residency, pool = make_scheduler(num_pages=16)
    residency.register("leaving", 2)
    scheduler.add(make_request(0, [1, 2], 3, adapters=(("leaving", 1.0),)))
    residency.unregister("leaving")
    assert residency.is_known("leaving")
    run_all(scheduler, CheckingRunner(4))
    assert not residency.is_known("leaving")
    assert pool.num_free == 16


def test_what_pins_leave_no_room_for_is_rejected_and_does_not_block() -> None:
    scheduler, residency, _ = make_scheduler(num_pages=8)
    residency.register("pinned", 6)
    assert residency.pin("pinned")
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [1] * 12, 2))
    scheduler.add(make_request(1, [1] * 2, 2))
    updates = [update for _ in range(4) for update in run_step(scheduler, runner)[1]]
    assert [update.request_id for update in updates if update.error] == [0]
    assert updates[-1].request_id == 1 and updates[-1].finish_reason is FinishReason.LENGTH


def test_a_pin_without_room_changes_nothing() -> None:
    scheduler, residency, pool = make_scheduler(num_pages=4)
    residency.register("large", 5)
    assert not residency.pin("large")
    scheduler.check_integrity()
    assert pool.num_free == 4


def test_a_failed_request_leaves_nothing_in_the_prefix_cache() -> None:
    scheduler, *_ = make_scheduler()
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [7] * 9, 5))
    run_step(scheduler, runner)
    scheduler.finish(0, FinishReason.ERROR)
    scheduler.add(make_request(1, [7] * 9, 1))
    assert scheduled(run_step(scheduler, runner)[0]) == {1: 9}


@pytest.mark.parametrize("also_running", [False, True])
def test_a_reset_empties_the_prefix_cache_and_running_requests_go_on(also_running: bool) -> None:
    scheduler, _, pool = make_scheduler(num_pages=16)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [7] * 8, 2))
    run_all(scheduler, runner)
    scheduler.add(make_request(1, [8] * 8, 6))
    run_step(scheduler, runner)
    assert scheduler.reset_prefix_cache(also_running) == also_running
    scheduler.check_integrity()
    assert pool.num_empty == 16 - 2  # those of the running request, which keeps them
    for request_id, token in ((2, 7), (3, 8)):
        scheduler.add(make_request(request_id, [token] * 9, 1))
    updates = [update for _ in range(8) for update in run_step(scheduler, runner)[1]]
    assert {update.request_id: update.num_cached_tokens for update in updates if update.request_id > 1} == {
        2: 0,
        3: 0 if also_running else 8,
    }
    scheduler.check_integrity()
    assert pool.num_free == 16


@pytest.mark.parametrize("num_steps", range(4))
def test_aborting_at_any_phase_gives_everything_back(num_steps: int) -> None:
    scheduler, residency, pool = make_scheduler(max_num_batched_tokens=4)
    residency.register("one", 3)
    runner = CheckingRunner(4)
    request: Request = make_request(0, [7] * 9, 5, adapters=(("one", 1.0),))
    scheduler.add(request)
    for _ in range(num_steps):
        run_step(scheduler, runner)
    scheduler.finish(0)
    scheduler.finish(0)
    scheduler.check_integrity()
    assert pool.num_free == pool.num_pages and not scheduler.has_work


def test_recomputing_a_prompt_does_not_repeat_its_logprobs() -> None:
    scheduler, *_ = make_scheduler(num_pages=64, max_num_batched_tokens=4)
    runner = CheckingRunner(4)
    sampling = SamplingParams(prompt_logprobs=0, max_tokens=3)
    scheduler.add(make_request(0, list(range(10)), 3, sampling=sampling))
    told: list[object] = []
    for index in range(12):
        if index == 2:
            scheduler._preempt(scheduler._running[0], scheduler._begin_plan(0.0))
        for update in run_step(scheduler, runner)[1]:
            told += update.prompt_logprobs
    assert told == list(range(1, 10))


def test_a_pin_is_refused_when_accepted_requests_would_not_fit_beside_it() -> None:
    scheduler, residency, _ = make_scheduler(num_pages=8)
    for digest in ("three", "six"):
        residency.register(digest, {"three": 3, "six": 6}[digest])
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [1] * 8, 12))  # may need 5 pages
    run_step(scheduler, runner)
    assert not scheduler.pin("six")
    assert scheduler.pin("three")
    assert not any(update.error for _ in range(15) for update in run_step(scheduler, runner)[1])


def test_a_step_that_was_interrupted_before_its_copies_runs_them_again() -> None:
    scheduler, residency, _ = make_scheduler(num_pages=16, copied_pages_per_step=8)
    residency.register("one", 3)
    scheduler.add(make_request(0, [1, 2], 2, adapters=(("one", 1.0),)))
    scheduler.schedule()
    assert not residency.is_resident("one")
    run_all(scheduler, CheckingRunner(4))
    assert residency.is_resident("one")


def test_no_row_relies_on_copies_that_an_interrupted_step_had_planned() -> None:
    scheduler, residency, _ = make_scheduler(num_pages=8, max_num_batched_tokens=2, copied_pages_per_step=3)
    residency.register("one", 1)
    residency.register("three", 3)
    assert scheduler.pin("one")
    scheduler.add(make_request(0, [0], 1, adapters=(("three", 1.0),)))
    scheduler.schedule()  # all pages of "three" are planned, and the step is interrupted
    scheduler.add(make_request(1, [0], 1, adapters=(("one", 1.0),)))  # its page goes first now
    run_all(scheduler, CheckingRunner(4))


def test_one_step_admits_no_more_than_its_tokens_let_begin() -> None:
    scheduler, *_ = make_scheduler(num_pages=64, max_num_batched_tokens=8, max_num_seqs=8)
    for request_id in range(6):
        scheduler.add(make_request(request_id, [request_id] * 6, 2))
    run_step(scheduler, CheckingRunner(4))
    assert scheduler.num_running == 2


def test_requests_that_are_cancelled_while_they_wait_leave_nothing() -> None:
    scheduler, *_ = make_scheduler(max_num_seqs=1)
    scheduler.add(make_request(0, [1], 4))
    run_step(scheduler, CheckingRunner(4))
    for request_id in range(1, 500):
        scheduler.add(make_request(request_id, [1], 4))
        scheduler.finish(request_id)
    assert len(scheduler._waiting) == 0 and scheduler.num_waiting == 0
    scheduler.check_integrity()


def test_a_request_that_is_aborted_before_its_first_step_lets_its_adapter_go() -> None:
    scheduler, residency, _ = make_scheduler()
    residency.register("one", 3)
    scheduler.add(make_request(0, [7] * 9, 5, adapters=(("one", 1.0),)))
    scheduler.finish(0)
    scheduler.check_integrity()
    residency.unregister("one")
    assert residency.take_gone() == ["one"]


def test_an_adapter_is_copied_while_its_request_waits_for_a_seat() -> None:
    scheduler, residency, _ = make_scheduler(num_pages=32, max_num_seqs=1, copied_pages_per_step=2)
    residency.register("next", 4)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [1, 2], 4))
    scheduler.add(make_request(1, [1, 2], 2, adapters=(("next", 1.0),)))
    steps = [scheduled(run_step(scheduler, runner)[0]) for _ in range(5)]
    assert steps == [{0: 2}, {0: 1}, {0: 1}, {0: 1}, {1: 2}]


def test_what_is_copied_ahead_gives_way_to_what_runs() -> None:
    scheduler, residency, _ = make_scheduler(num_pages=8, max_num_seqs=1, copied_pages_per_step=1)
    residency.register("next", 5)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [1, 2, 3, 4], 20))
    scheduler.add(make_request(1, [1, 2], 2, adapters=(("next", 1.0),)))
    tokens = run_all(scheduler, runner)
    assert scheduler.num_preemptions == 0
    assert tokens[0] == solo([1, 2, 3, 4], 20)
    assert len(tokens[1]) == 2


def test_copies_that_requests_wait_for_come_before_those_made_ahead() -> None:
    scheduler, residency, _ = make_scheduler(num_pages=64, max_num_seqs=2, copied_pages_per_step=4)
    residency.register("ahead", 3)
    residency.register("now", 3)
    runner = CheckingRunner(4)
    for request_id, adapters in enumerate([(), (), (("ahead", 1.0),)]):
        scheduler.add(make_request(request_id, [1, 2], 9, adapters=adapters))
    step, _ = run_step(scheduler, runner)
    assert [copy.digest for copy in step.copies] == ["ahead"]
    scheduler.finish(0)
    scheduler.add(make_request(3, [1, 2], 9, adapters=(("now", 1.0),), priority=-1))
    step, _ = run_step(scheduler, runner)
    assert [copy.digest for copy in step.copies] == ["now"]


@pytest.mark.parametrize("num_prompt_tokens", [48, 37])  # one waits from the start, one meets the warming adapter later
def test_warming_an_adapter_fails_no_request(num_prompt_tokens: int) -> None:
    scheduler, residency, _ = make_scheduler(num_pages=20, max_num_batched_tokens=64, copied_pages_per_step=1)
    residency.register("warm", 10)
    assert residency.warm("warm")
    prompt = list(range(num_prompt_tokens))
    scheduler.add(make_request(0, prompt, 20))
    tokens = run_all(scheduler, CheckingRunner(4))
    assert scheduler.num_preemptions == 0
    assert tokens == {0: solo(prompt, 20)}


@pytest.mark.parametrize("how", ["pin", "warm"])
def test_what_nobody_uses_yet_keeps_no_pin_and_no_warming_out(how: str) -> None:
    scheduler, residency, _ = make_scheduler(num_pages=8)
    for digest, num_pages in (("ahead", 3), ("first", 4), ("wanted", 7), ("large", 9)):
        residency.register(digest, num_pages)
    residency.prefetch("ahead")
    assert residency.warm("first")
    act = scheduler.pin if how == "pin" else residency.warm
    assert not act("large")  # and no other adapter gives way
    assert residency.num_kept_pages == 7
    assert act("wanted")
    scheduler.check_integrity()
    run_all(scheduler, CheckingRunner(4))
    assert residency.is_resident("wanted") and not residency.is_resident("first")


def test_residency_is_told_when_it_changes() -> None:
    scheduler, residency, _ = make_scheduler(num_pages=8, copied_pages_per_step=3)
    runner = CheckingRunner(4)
    for digest in ("one", "two"):
        residency.register(digest, 5)
    assert residency.warm("one")
    run_step(scheduler, runner)
    assert residency.take_changes() == {}  # "one" is not whole yet
    run_step(scheduler, runner)
    assert residency.take_changes() == {"one": True} and residency.take_changes() == {}
    assert residency.warm("two")
    assert residency.take_changes() == {"one": False}
    for _ in range(2):
        run_step(scheduler, runner)
    residency.unregister("two")
    assert residency.take_changes() == {}  # an unloaded adapter is not reported


def test_seconds_of_copies_are_divided_by_pages() -> None:
    scheduler, residency, _ = make_scheduler(num_pages=8, copied_pages_per_step=4)
    for digest, num_pages in (("one", 1), ("three", 3)):
        residency.register(digest, num_pages)
        residency.warm(digest)
    step = scheduler.schedule()
    scheduler.note_seconds(step, 4.0, 0.0)
    scheduler.update(step, {})
    counts = [residency.copy_counts(digest) for digest in ("one", "three", "none")]
    assert counts == [CopyCounts(1, 1, 1.0), CopyCounts(1, 3, 3.0), CopyCounts()]
    assert scheduler.counts.copy_seconds == 4.0


def test_a_waiting_request_lets_an_adapter_become_warm_first() -> None:
    scheduler, residency, _ = make_scheduler(num_pages=12, max_num_batched_tokens=64, copied_pages_per_step=2)
    residency.register("warm", 4)
    assert residency.warm("warm")
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [1] * 36, 2))
    assert [scheduled(run_step(scheduler, runner)[0]) for _ in range(3)] == [{}, {}, {0: 36}]


def test_what_pins_forbid_is_rejected_once_nothing_is_warming() -> None:
    scheduler, residency, _ = make_scheduler(num_pages=20, copied_pages_per_step=1)
    for digest in ("pinned", "warm"):
        residency.register(digest, 8)
    assert scheduler.pin("pinned") and residency.warm("warm")
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [1] * 52, 2))
    updates = [update for _ in range(20) for update in run_step(scheduler, runner)[1]]
    assert [update.finish_reason for update in updates] == [FinishReason.ERROR]


def test_an_unloaded_adapter_that_is_copied_ahead_goes_with_its_last_request() -> None:
    scheduler, residency, pool = make_scheduler(max_num_seqs=1)
    residency.register("next", 5)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [1, 2], 4))
    scheduler.add(make_request(1, [1, 2], 2, adapters=(("next", 1.0),)))
    residency.unregister("next")
    run_step(scheduler, runner)
    scheduler.finish(1)
    assert list(run_all(scheduler, runner)) == [0]
    assert pool.num_free == pool.num_pages and not residency.is_known("next")


def test_requests_aborted_before_they_make_evicted_blocks_again_leave_no_memory_of_them() -> None:
    scheduler, _, pool = make_scheduler(num_pages=12, max_num_batched_tokens=8)
    runner = CheckingRunner(4)
    for base in range(0, 20000, 100):
        for request_id in (base, base + 50):  # the second request evicts the first one's blocks
            scheduler.add(make_request(request_id, list(range(request_id, request_id + 32)), 1))
            run_all(scheduler, runner)
        scheduler.add(make_request(base + 1, list(range(base, base + 32)), 1))
        run_step(scheduler, runner)
        scheduler.finish(base + 1)
        scheduler.check_integrity()
    assert len(pool._rule._known) <= 2 * pool.num_pages


def test_adapters_given_up_before_they_are_copied_again_leave_no_memory_of_them() -> None:
    scheduler, residency, pool = make_scheduler(num_pages=9, copied_pages_per_step=2)
    runner = CheckingRunner(4)
    for index in range(200):
        residency.register(str(index), 4)
        assert residency.warm(str(index))
        run_all(scheduler, runner)
        if index >= 2:  # an evicted adapter is wanted again, and then given up
            scheduler.add(make_request(index, [1], 1, adapters=((str(index - 2), 1.0),)))
            scheduler.schedule()
            scheduler.finish(index)
            scheduler.check_integrity()
    assert len(pool._rule._known) <= 2 * pool.num_pages


def test_suspects_are_computed_in_steps_of_their_own_and_hold_nobody_up() -> None:
    scheduler, *_ = make_scheduler(num_pages=64)
    requests = [make_request(index, [index] * 6, 6, num_alone=alone) for index, alone in enumerate((0, 2, 3, 0))]
    for request in requests:
        scheduler.add(request)
    runner, rows = CheckingRunner(4), []
    while scheduler.has_work:
        suspects = {request.request_id for request in requests if request.num_alone}
        rows.append([*scheduled(run_step(scheduler, runner)[0])])
        assert len(rows[-1]) == 1 or not suspects & {*rows[-1]}
    assert rows[:7] == [[0, 3], [1], [0, 3], [2], [0, 3], [1], [0, 1, 3]]
    assert [2] in rows[7:]


def test_suspects_without_company_take_turns() -> None:
    scheduler, *_ = make_scheduler(num_pages=64)
    for request_id in range(3):
        scheduler.add(make_request(request_id, [request_id] * 3, 3, num_alone=3))
    runner, rows = CheckingRunner(4), []
    while scheduler.has_work:
        rows.append([*scheduled(run_step(scheduler, runner)[0])])
    assert [row for row in rows if row] == [[0], [1], [2]] * 3


def test_suspects_get_the_tokens_that_they_get_in_company() -> None:
    scheduler, *_ = make_scheduler(num_pages=64)
    prompts = [[1, 2, 3, 4, 5], [1, 2, 3], [9] * 7]
    for request_id, prompt in enumerate(prompts):
        scheduler.add(make_request(request_id, prompt, 5, num_alone=request_id * 2))
    tokens = run_all(scheduler, CheckingRunner(4))
    assert [tokens[index] for index in range(3)] == [solo(prompt, 5) for prompt in prompts]


@pytest.mark.parametrize(
    ("num_unsalted", "num_cached"),
    [(0, 0), (3, 0), (4, 4), (7, 4), (8, 8), (9, 8), (99, 12)],
)
def test_whole_blocks_of_a_beginning_that_is_shared_have_no_salt(num_unsalted: int, num_cached: int) -> None:
    """Before the first block that is not wholly in it, requests of all salts share; from there on each salt is alone,
    also where a beginning of another length is shared."""
    scheduler, *_ = make_scheduler(num_pages=64)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [7] * 13, 1, cache_salt=b"red", num_unsalted_tokens=num_unsalted))
    run_all(scheduler, runner)
    scheduler.add(make_request(1, [7] * 13, 1, cache_salt=b"blue", num_unsalted_tokens=num_unsalted))
    _, updates = run_step(scheduler, runner)
    assert [update.num_cached_tokens for update in updates] == [num_cached]
    scheduler.add(make_request(2, [7] * 13, 1, cache_salt=b"blue", num_unsalted_tokens=num_unsalted))
    _, updates = run_step(scheduler, runner)
    assert [update.num_cached_tokens for update in updates] == [12]


@pytest.mark.parametrize(("activation", "num_cached"), [(0, 0), (6, 4), (8, 8), (10, 8)])
def test_adapters_keep_a_shared_beginning_apart_from_the_base_model(activation: int, num_cached: int) -> None:
    scheduler, residency, _ = make_scheduler(num_pages=64)
    residency.register("digest", 1)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [7] * 13, 1, cache_salt=b"red", num_unsalted_tokens=8))
    run_all(scheduler, runner)
    adapted = {"adapters": (("digest", 1.0),), "activation": activation}
    scheduler.add(make_request(1, [7] * 13, 1, cache_salt=b"blue", num_unsalted_tokens=8, **adapted))
    _, updates = run_step(scheduler, runner)
    assert [update.num_cached_tokens for update in updates] == [num_cached]


def test_no_more_than_eight_tenants_have_prompts_computed_in_turns() -> None:
    scheduler, *_ = make_scheduler(num_pages=128, max_num_seqs=32)
    for request_id in range(12):
        scheduler.add(make_request(request_id, [request_id] * 20, 2, tenant=str(request_id)))
    run_step(scheduler, CheckingRunner(4))
    assert scheduler.num_running == MAX_TENANTS == 8


def test_a_request_without_adapters_does_not_keep_those_behind_it_from_being_copied() -> None:
    scheduler, residency, _ = make_scheduler(num_pages=16, max_num_seqs=1, policy="fcfs")
    residency.register("next", 2)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [1, 2], 9))
    scheduler.add(make_request(1, [1] * 60, 2))
    scheduler.add(make_request(2, [1], 2, adapters=(("next", 1.0),)))
    assert [copy.digest for copy in run_step(scheduler, runner)[0].copies] == ["next"]


def test_an_adapter_of_a_request_that_has_no_room_yet_is_given_back() -> None:
    """Pages of the adapter are free, and those of the blocks beside them are not."""
    scheduler, residency, pool = make_scheduler(num_pages=6, is_blind=True)
    residency.register("wide", 3)
    runner = CheckingRunner(4)
    scheduler.add(make_request(0, [1] * 9, 3))
    run_step(scheduler, runner)
    scheduler.add(make_request(1, [2] * 5, 2, adapters=(("wide", 1.0),)))
    assert scheduled(run_step(scheduler, runner)[0]) == {0: 1}
    assert residency.num_held_pages == 0
    assert set(run_all(scheduler, runner)) == {0, 1}
    assert pool.num_free == 6
