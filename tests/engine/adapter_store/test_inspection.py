"""inspect: what an engine would say of an adapter, without one."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from tiny import make_adapter

from blora.engine import LLM, AdapterTooLarge, EngineStartError
from blora.engine.adapter_store.inspection import inspect


def test_it_tells_what_the_engine_tells(
    make_llm: Callable[..., LLM], tiny_model: Path, tiny_adapters: dict[str, Path]
) -> None:
    llm = make_llm()
    for path in tiny_adapters.values():
        report = inspect(path, tiny_model, block_size=4)
        assert report == llm.inspect_adapter(path) == llm.load_adapter("it", path).report
        info = llm.get_adapter("it")
        assert (info.digest, info.num_bytes, info.num_pages) == (report.digest, report.num_host_bytes, report.num_pages)
        assert info.report is None
        llm.unload_adapter("it")


def test_inspecting_loads_nothing(make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]) -> None:
    llm = make_llm()
    assert llm.inspect_adapter(tiny_adapters["r4"]).digest
    assert llm.inspect_adapter("/nowhere").problems
    assert not llm.list_adapters()


def test_a_repository_without_safetensors_is_told_by_what_it_lacks(
    make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adapter_config.json").write_bytes((tiny_adapters["r4"] / "adapter_config.json").read_bytes())
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    (problem,) = make_llm().inspect_adapter("someone/adapter").problems
    assert "the repository has no adapter_model.safetensors; other formats" in problem


def test_what_the_memory_cannot_hold_is_a_problem(make_llm: Callable[..., LLM], tiny_adapters: dict[str, Path]) -> None:
    ample = make_llm()
    num_pages = ample.inspect_adapter(tiny_adapters["r4"]).num_pages
    llm = make_llm(memory=num_pages * ample.get_info().page_bytes)
    report = llm.inspect_adapter(tiny_adapters["r4"])
    assert report.digest and "pages of memory" in report.problems[0]
    # What no arena of this size holds is told before its weights are read, as a load tells it.
    (problem,) = llm.inspect_adapter(tiny_adapters["r64"]).problems
    with pytest.raises(AdapterTooLarge) as caught:
        llm.load_adapter("it", tiny_adapters["r64"])
    assert problem == str(caught.value) and "its ranks ask for" in problem


def test_a_model_that_is_none_says_so(tiny_adapters: dict[str, Path]) -> None:
    with pytest.raises(EngineStartError, match="does not exist"):
        inspect(tiny_adapters["r4"], "/nowhere/model")


def test_the_command_needs_no_torch(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    check = (
        "import sys; from blora.engine.cli.main import main; status = main(sys.argv[1:]);"
        "sys.exit(status or bool({'torch', 'transformers'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", check, "adapters", "inspect", str(tiny_adapters["r8"])]
    result = subprocess.run(
        [*command, "--model", str(tiny_model), "--json"], capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["kind"] == "rsLoRA" and len(report["modules"]) == 4 and report["layers"][0]["norm"] > 0


def test_a_model_that_is_none_is_one_line_of_the_command(
    tiny_adapters: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from blora.engine.cli.main import main

    assert main(["adapters", "inspect", str(tiny_adapters["r4"]), "--model", "/nowhere/model"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("blora: ") and "does not exist" in error and error.count("\n") == 1


def test_the_table_can_be_read(tiny_model: Path, tiny_adapters: dict[str, Path]) -> None:
    from blora.engine.cli.printing import report_text

    report = inspect(tiny_adapters["r8"], tiny_model)
    lines = report_text(replace(report, ignored_tensors=("x: as the base has it",))).splitlines()
    assert "ignored: x: as the base has it" in lines
    (row,) = [line.split() for line in lines if line.startswith("model.layers.1.mlp.gate_proj")]
    assert row[1:3] == ["8", f"{16 / 8**0.5:g}"]


def test_a_refused_adapter_is_a_list_and_a_status(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from blora.engine.cli.main import main

    folder = make_adapter(tiny_model, tmp_path / "dora", r=2)
    (folder / "adapter_model.safetensors").unlink()
    assert main(["adapters", "inspect", str(folder), "--model", str(tiny_model)]) == 1
    assert "is refused:\n  adapter_model.safetensors cannot be read" in capsys.readouterr().out
