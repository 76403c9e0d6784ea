"""The backend refuses before it allocates, and imports FlashInfer and Triton only when it is chosen."""

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cuda_models import save_model
from fake_flashinfer import FakeFlashInfer

from blora.engine import LLM, EngineStartError, SamplingParams
from blora.engine.cuda import library
from blora.engine.startup import choose_backend as backends

pytestmark = pytest.mark.slow

OPTIONS = {"backend": "cuda", "memory": "2MB"}


@pytest.mark.parametrize("name", ["flashinfer", "triton"])
def test_a_missing_package_is_named_with_what_to_install(
    name: str, wide_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", FakeFlashInfer())
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EngineStartError, match=rf"{name}.*pip install '\.\[cuda\]'"):
        LLM(str(wide_model), dtype="float16", **OPTIONS)


@pytest.mark.parametrize("error", [PermissionError("/.cache"), RuntimeError("flashinfer-cubin version")])
def test_a_package_that_cannot_be_imported_is_no_reason_to_end(
    error: Exception, wide_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An import makes folders and compares versions, which may fail; "auto" then takes the CPU."""

    def load(name: str) -> Any:
        if name == "flashinfer":
            raise error
        return importlib.import_module(name)

    monkeypatch.setattr(library, "importlib", SimpleNamespace(import_module=load))
    with pytest.raises(EngineStartError, match=f"flashinfer, which cannot be imported: {error}"):
        LLM(str(wide_model), dtype="float16", **OPTIONS)
    monkeypatch.setattr(backends, "has_gpu", lambda: True)
    LLM(str(wide_model), dtype="float32", memory="2MB", block_size=4)
    assert "there is a GPU, but it is not used" in caplog.text


def test_kernels_are_compiled_with_ninja(wide_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", FakeFlashInfer())
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineStartError, match="ninja, which is not on PATH"):
        LLM(str(wide_model), dtype="float16", **OPTIONS)
    (tmp_path / "ninja").touch(0o755)
    with pytest.raises(EngineStartError, match="no GPU"):
        LLM(str(wide_model), dtype="float16", **OPTIONS)


def test_a_machine_without_a_gpu(wide_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flashinfer", FakeFlashInfer())
    monkeypatch.setattr(library, "_check_tools", lambda: None)
    with pytest.raises(EngineStartError, match="no GPU"):
        LLM(str(wide_model), dtype="float16", **OPTIONS)


@pytest.mark.usefixtures("flashinfer")
@pytest.mark.parametrize(
    ("fields", "dtype", "message"),
    [({}, "float32", "dtype: float32 is neither"), ({"head_dim": 48}, "float16", "head_dim: 48 is none of 64, 128")],
)
def test_what_the_kernels_cannot_do(fields: dict[str, Any], dtype: str, message: str, tmp_path: Path) -> None:
    model = save_model(tmp_path, "LlamaForCausalLM", **fields)
    with pytest.raises(EngineStartError, match=message):
        LLM(str(model), dtype=dtype, **OPTIONS)


@pytest.mark.parametrize("is_usable", [True, False])
def test_auto_takes_a_gpu_where_there_is_one(
    is_usable: bool, wide_model: Path, flashinfer: FakeFlashInfer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "has_gpu", lambda: True)
    dtype = "float16" if is_usable else "float32"
    llm = LLM(str(wide_model), dtype=dtype, memory="2MB", block_size=4, max_num_seqs=1)
    llm.generate("a", SamplingParams(max_tokens=2), use_tqdm=False)
    assert bool(flashinfer.log.calls) == is_usable


IMPORTS = """
import sys
from blora.engine import LLM
llm = LLM(sys.argv[1], backend=sys.argv[2], memory="2MB", block_size=4, max_num_batched_tokens=8)
llm.generate("a", use_tqdm=False)
sys.exit(any(name.split(".")[0] in ("flashinfer", "triton") for name in sys.modules))
"""


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
def test_other_backends_import_neither(backend: str, tiny_model: Path) -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS, str(tiny_model), backend], capture_output=True, timeout=200)
    assert done.returncode == 0, done.stderr.decode()[-2000:]


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
def test_other_backends_have_no_kv_of_8_bits(backend: str, tiny_model: Path) -> None:
    with pytest.raises(EngineStartError, match="kv_cache_dtype: fp8 needs the backend cuda"):
        LLM(str(tiny_model), backend=backend, kv_cache_dtype="fp8", memory="2MB")
