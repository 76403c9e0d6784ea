"""What the start says of an arena that is too small."""

import logging
from pathlib import Path
from typing import Any

import pytest

from blora.engine import LLM, EngineStartError

ROOM: dict[str, Any] = {"memory": "36KB", "block_size": 4, "backend": "reference"}  # 35 pages, 140 tokens


def test_a_length_that_does_not_fit_into_the_memory_is_refused(tiny_model: Path) -> None:
    with pytest.raises(
        EngineStartError, match=r"^max_model_len: a request of 200 tokens needs 50 pages, and .* has 35"
    ):
        LLM(tiny_model, max_model_len=200, **ROOM)
    with pytest.raises(EngineStartError, match="^memory: "):
        LLM(tiny_model, **ROOM | {"memory": "1KB"})


def test_a_model_longer_than_the_memory_is_served_with_a_warning(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        llm = LLM(tiny_model, **ROOM)
    assert "longer requests than 140 tokens are refused" in caplog.text
    (output,) = llm.generate(["a" * 100], use_tqdm=False)
    assert output.outputs[0].finish_reason is not None
    llm.close()
