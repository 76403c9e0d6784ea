"""UpdateFrames: a step with many logprobs is several messages, which say together what one would have said."""

import pytest

from blora.engine.ipc import update_frames
from blora.engine.ipc.update_frames import in_frames
from blora.scheduler import FinishReason, RowUpdate, TokenLogprob


@pytest.fixture(autouse=True)
def small_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_frames, "MAX_LOGPROBS_PER_FRAME", 10)


def entry(num_logprobs: int, token_id: int = 0) -> TokenLogprob:
    return TokenLogprob((token_id,) * num_logprobs, (0.0,) * num_logprobs, (1,) * num_logprobs)


def test_rows_are_sent_together_while_they_fit() -> None:
    rows = [RowUpdate(index, (0,), (entry(num),)) for index, num in enumerate((3, 6, 2, 20, 1, 1))]
    assert [[update.request_id for update in frame] for frame in in_frames(rows)] == [[0, 1], [2], [3], [4, 5]]
    assert in_frames([]) == [[]]


def test_a_step_without_logprobs_is_one_message() -> None:
    rows = [RowUpdate(index, (5,)) for index in range(1000)]
    assert in_frames(rows) == [rows]


def test_a_row_with_a_long_prompt_is_cut() -> None:
    told = tuple(entry(4, token_id) for token_id in range(7))
    row = RowUpdate(1, (5,), (entry(4),), told, FinishReason.LENGTH, num_cached_tokens=3, scheduled_ts=2.0)
    frames = in_frames([RowUpdate(0, (9,)), row, RowUpdate(2, (9,))])
    parts = [update for frame in frames for update in frame if update.request_id == 1]
    assert [len(part.prompt_logprobs) for part in parts] == [2, 2, 2, 1]
    assert sum((part.prompt_logprobs for part in parts), ()) == told
    *first, last = parts
    assert (last.token_ids, last.logprobs, last.finish_reason) == (row.token_ids, row.logprobs, row.finish_reason)
    assert all((part.token_ids, part.logprobs, part.finish_reason) == ((), (), None) for part in first)
    assert {part.scheduled_ts for part in parts} == {2.0}
    assert [update.request_id for frame in frames for update in frame] == [0, 1, 1, 1, 1, 2]


def test_a_position_with_the_whole_vocabulary_stays_whole() -> None:
    row = RowUpdate(1, prompt_logprobs=(entry(50), entry(50)))
    assert [[len(part.prompt_logprobs) for part in frame] for frame in in_frames([row])] == [[1], [1]]
