"""resolve_model: what is here is used as it is, what cannot be a hub id is refused at once, the rest is downloaded."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from blora.engine.model_files.hub import ModelNotFound, resolve_model


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    calls: list[Any] = []

    def download(model: str, **options: Any) -> str:
        calls.append((model, options))
        if model == "nobody/nothing":
            raise LocalEntryNotFoundError("no such model here, and the hub cannot be reached")
        (tmp_path / "config.json").touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_a_folder_and_a_gguf_file_are_used_as_they_are(tmp_path: Path, downloads: list[Any]) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    (tmp_path / "config.json").touch()
    assert resolve_model(str(tmp_path), None) == tmp_path
    assert resolve_model(str(file), None) == file
    assert downloads == []


def test_a_hub_id_is_downloaded(tmp_path: Path, downloads: list[Any]) -> None:
    assert resolve_model("someone/model", "v1.0") == tmp_path
    ((model, options),) = downloads
    assert (model, options["revision"]) == ("someone/model", "v1.0")
    wanted, ignored = options["allow_patterns"], options["ignore_patterns"]
    files = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.model", "merges.txt", "chat_template.jinja"]
    unwanted = ["original/params.json", "consolidated.safetensors", "pytorch_model.bin", "model.gguf"]
    chosen = huggingface_hub.utils.filter_repo_objects(files + unwanted, allow_patterns=wanted, ignore_patterns=ignored)
    assert list(chosen) == files


@pytest.mark.parametrize("model", ["./missing", "/missing/model", "missing.gguf", "a/b/c"])
def test_what_cannot_be_a_hub_id_is_refused_without_asking(model: str, downloads: list[Any]) -> None:
    with pytest.raises(ModelNotFound, match="does not exist"):
        resolve_model(model, None)
    assert downloads == []


def test_what_the_hub_does_not_give(downloads: list[Any]) -> None:
    with pytest.raises(ModelNotFound, match=r"nobody/nothing.*cannot be reached"):
        resolve_model("nobody/nothing", None)
    assert len(downloads) == 1


def test_a_bad_id_and_a_plain_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="neither a folder"):
        resolve_model("not a valid id!", None)
    (tmp_path / "model.bin").touch()
    with pytest.raises(ModelNotFound, match="not a .gguf file"):
        resolve_model(str(tmp_path / "model.bin"), None)


def test_a_folder_that_holds_no_model_is_refused_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelNotFound, match=r"holds no config\.json"):
        resolve_model(str(tmp_path), None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(ModelNotFound, match=r"someone/adapter.* holds no config\.json"):
        resolve_model("someone/adapter", None)
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(ModelNotFound, match="is an adapter"):
        resolve_model(str(tmp_path), None)


def test_nothing_is_not_the_current_folder(downloads: list[Any]) -> None:
    with pytest.raises(ModelNotFound, match="is empty"):
        resolve_model("", None)
    assert downloads == []
