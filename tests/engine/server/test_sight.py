"""What a tenant sees of the engine names no folder of the server."""

from dataclasses import replace
from pathlib import Path

import pytest

from blora.engine import EngineInfo
from blora.engine.server.sight import facts_alone

INFO = EngineInfo(
    model="",
    dtype="float32",
    num_pages=3,
    page_bytes=4,
    num_free_pages=1,
    num_running=2,
    num_waiting=1,
    vocab_size=5,
    max_model_len=6,
    block_size=7,
    version="1",
)


@pytest.mark.parametrize(
    ("model", "seen"),
    [
        ("/srv/models/secret-project/base", "base"),
        ("models/base", "base"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("tiny", "tiny"),
    ],
)
def test_a_tenant_sees_the_models_name(model: str, seen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models/base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    facts = facts_alone(replace(INFO, model=model))
    assert (facts.model, facts.vocab_size, facts.num_running, facts.num_pages) == (seen, 5, 0, 0)
