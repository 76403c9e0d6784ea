"""`blora bench gpu` on the fakes: its comparison, its report, and its message without a GPU."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fake_flashinfer import FakeFlashInfer
from recording_device import RecordingDevice

from blora.bench import gpu, measured_engine
from blora.bench.gpu import compare, measure_copies
from blora.engine import CompletionOutput, Logprob
from blora.engine.cli import main as cli

pytestmark = pytest.mark.slow


def line(model: Path, folder: Path, rows: str = "1") -> list[str]:
    words = f"bench gpu {model} --dtype float16 --rows {rows} --ranks 1 --modules q_proj --prompt-len 5 --output-len 3"
    return f"{words} --rounds 1 --adapter-folder {folder / 'adapters'} --output {folder}".split()


@pytest.fixture
def small(flashinfer: FakeFlashInfer, monkeypatch: pytest.MonkeyPatch) -> FakeFlashInfer:
    monkeypatch.setattr(gpu, "ADAPTERS", 2)
    monkeypatch.setattr(gpu, "PAGE_BYTES", 1 << 10)
    monkeypatch.setattr(measured_engine, "WARM_ROWS", 2)
    return flashinfer


def test_the_report(
    small: FakeFlashInfer, wide_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(line(wide_model, tmp_path, rows="1,2")) == 0
    report = json.loads((tmp_path / "gpu.json").read_text())
    for check in (report["parity"], report["isolation"]):
        assert check["rows"] == 6 and check["wrong"] == 0 and check["whole"] >= 4
    assert [each["workload"]["rows"] for each in report["throughput"]] == [1, 2]
    assert report["copies"].keys() == {"staged_bytes_per_second", "copied_bytes_per_second"}
    text = (tmp_path / "gpu.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip() and "LoRA tok/s" in text and "a recording device" in text
    assert small.log.calls


def test_wrong_tokens_are_told_by_the_exit_code(
    small: FakeFlashInfer, wide_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = gpu.compare
    monkeypatch.setattr(gpu, "compare", lambda *args: replace(original(*args), wrong=1))
    assert cli.main(line(wide_model, tmp_path)) == 1 and small.log.calls


def test_without_a_gpu_it_says_so(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nothing was measured.*finds no GPU") as caught:
        cli.main(line(tiny_model, tmp_path))
    assert caught.value.code != 0 and not (tmp_path / "gpu.json").exists()


def row(*tokens: int, second: float = -3.0, other: int = 9, error: str | None = None) -> CompletionOutput:
    """A row of tokens with log-probability -1, each beside another token."""
    logprobs = [{token: Logprob(-1.0, 1, None), other: Logprob(second, 2, None)} for token in tokens]
    return CompletionOutput(index=0, text="", token_ids=tokens, cumulative_logprob=0.0, logprobs=logprobs, error=error)


@pytest.mark.parametrize(
    ("expected", "actual", "kind"),
    [
        (row(1, 2), row(1, 2), "whole"),
        (row(1, 2), row(1, 3), "wrong"),
        (row(1, 2, second=-1.01), row(1, 9), "tie"),
        (row(1, 2, second=-1.01), row(1, 3), "wrong"),  # not the second best
        (row(1, 2), row(1, 9), "wrong"),  # far behind
        (row(1, 2), row(1, 2, error="not finite"), "wrong"),
        (row(1, 2), row(1, error="not finite"), "wrong"),
    ],
)
def test_what_counts_as_a_difference(expected: CompletionOutput, actual: CompletionOutput, kind: str) -> None:
    result = compare([expected], [actual], 0.1)
    counts = {"whole": result.whole, "tie": result.ties, "wrong": result.wrong}
    assert counts == {name: int(name == kind) for name in counts}


@pytest.mark.parametrize("value", [-1.5, float("nan")])
def test_the_same_token_by_other_logits_is_wrong(value: float) -> None:
    actual = row(1)
    actual.logprobs[0][1] = Logprob(value, 1, None)
    assert compare([row(1)], [actual], 0.1).wrong == 1


def test_copies_are_checked(device: RecordingDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PAGE_BYTES", 1 << 10)
    rates = measure_copies(device, rounds=2)
    assert rates["staged_bytes_per_second"] >= rates["copied_bytes_per_second"] > 0
    monkeypatch.setattr(gpu.PageCopier, "copy", lambda *_: None)
    with pytest.raises(RuntimeError, match="did not arrive"):
        measure_copies(device, rounds=1)
