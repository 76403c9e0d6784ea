"""Which engines limit the time of their steps, and which only the number of tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blora.engine import LLM, AsyncLLM
from blora.engine.arguments.engine_args import engine_config
from blora.engine.startup.assembly import plan_shard


@pytest.mark.parametrize(
    ("backend", "options", "is_timed"),
    [
        ("cpu", {}, True),
        ("reference", {}, False),
        ("reference", {"step_budget": "time"}, True),
        ("reference", {"target_itl": 0.05}, True),
        ("cpu", {"step_budget": "tokens"}, False),
    ],
)
def test_chunks_depend_on_the_clock_where_they_change_no_bit_or_it_is_asked_for(
    tiny_model: Path, backend: str, options: dict[str, Any], is_timed: bool
) -> None:
    limits = plan_shard(engine_config(tiny_model, backend=backend, threads=1, **options), tiny_model, 0).limits
    assert (limits.is_timed, limits.target_itl) == (is_timed, options.get("target_itl"))


@pytest.mark.parametrize(
    ("options", "is_timed"), [({}, False), ({"step_budget": "time"}, True), ({"target_itl": 1}, True)]
)
def test_in_process_steps_are_filled_up(make_llm: Callable[..., LLM], options: dict[str, Any], is_timed: bool) -> None:
    assert make_llm(**options)._core.scheduler.limits.is_timed is is_timed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_budget": "seconds"}, "step_budget: 'seconds' is not one of auto, time, tokens"),
        ({"target_itl": 0}, "target_itl: 0 is not a number of seconds above 0 and up to 60"),
        ({"target_itl": 100}, "target_itl: 100 is not a number of seconds above 0 and up to 60"),
        ({"target_itl": float("nan")}, "target_itl: nan is not"),
        ({"target_itl": True}, "target_itl: True is not"),
        ({"target_itl": "50ms"}, "target_itl: '50ms' is not"),
        ({"target_itl": 0.05, "step_budget": "tokens"}, "target_itl: needs step_budget"),
    ],
)
def test_wrong_values_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AsyncLLM("m", **options)
