"""The environments of other people's programs, below .cache/interop: each is made once, and asked for its versions."""

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache/interop"
PYTHON = CACHE / "python"
OPENAI, LITELLM, LANGCHAIN = "openai==3.57.0", "litellm==1.110.2", "langchain-openai==1.7.4"
PYTHON_PACKAGES = (OPENAI, LITELLM, LANGCHAIN, "pydantic==2.14.4")
NODE = CACHE / "node"
GRPC_JS, OPENAI_JS = "@grpc/grpc-js@1.14.7", "openai@7.59.0"
NODE_PACKAGES = (GRPC_JS, OPENAI_JS, "grpc-js-reflection-client@1.4.2")
VLLM = "vllm==0.33.0"  # some hundred MB, of which one program is kept, which needs neither torch nor CUDA
VLLM_PROGRAM = "vllm/vllm-rs"


def python() -> Path:
    """Returns the interpreter of an environment with the clients in Python."""
    interpreter = PYTHON / "bin/python"
    if _is_ready(PYTHON, PYTHON_PACKAGES):
        return interpreter
    venv.create(PYTHON, with_pip=True, clear=True)
    _run(interpreter, "-m", "pip", "install", "--quiet", *PYTHON_PACKAGES)
    _make_ready(PYTHON, PYTHON_PACKAGES)
    return interpreter


def vllm_rs() -> Path:
    """Returns vLLM's program."""
    folder = CACHE / "vllm"
    if _is_ready(folder, (VLLM,)):
        return folder / VLLM_PROGRAM
    shutil.rmtree(folder, ignore_errors=True)
    _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, VLLM)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(VLLM_PROGRAM, folder)
    wheel.unlink()
    (folder / VLLM_PROGRAM).chmod(0o755)
    _make_ready(folder, (VLLM,))
    return folder / VLLM_PROGRAM


def node_modules() -> Path | None:
    """Returns the folder of Node's packages; None without Node."""
    if shutil.which("npm") is None:
        return None
    if not _is_ready(NODE, NODE_PACKAGES):
        NODE.mkdir(parents=True, exist_ok=True)
        _run("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", NODE, *NODE_PACKAGES)
        _make_ready(NODE, NODE_PACKAGES)
    return NODE / "node_modules"


def _is_ready(folder: Path, packages: tuple[str, ...]) -> bool:
    mark = folder / ".ready"
    return mark.exists() and mark.read_text() == "\n".join(packages)


def _make_ready(folder: Path, packages: tuple[str, ...]) -> None:
    (folder / ".ready").write_text("\n".join(packages))


def _run(*command: str | Path) -> None:
    print(*command, flush=True)
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""})
