"""The entries of the comparison: one worker for each peer, or two if the peer needs another engine for adapters."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .work import MODES, Mode, Work

HERE = Path(__file__).parent
GNU = "--gnu-openmp"  # vLLM with torch's OpenMP, as it runs without a preloaded library


@dataclass(frozen=True)
class Entry:
    """One worker. command: its command without the options that all workers have. needs: files of its environment."""

    peer: str
    title: str
    modes: tuple[Mode, ...]
    command: tuple[str, ...]
    model: Path
    needs: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return "-".join([self.peer, *self.modes])

    @property
    def loads_adapters(self) -> bool:
        return "adapters" in self.modes

    def absent(self) -> str | None:
        """Returns the reason why the worker cannot be started, or None."""
        for path in self.needs:
            if not path.exists():
                return f"its environment is missing: there is no {path}"
        return None

    def full_command(self, work: Work, threads: int, adapters: Sequence[Path]) -> list[str]:
        length = work.prompt_len + work.output_len
        command = [*self.command, "--model", str(self.model), "--threads", str(threads)]
        command += ["--rows", str(work.max_rows), "--length", str(length)]
        if self.loads_adapters:
            command += [f"--adapter={path}" for path in adapters]
        return command


def entries(model: Path, environments: Path) -> list[Entry]:
    """Returns all entries in the order of the table. The first is blora, with which the others are compared."""
    vllm, openvino, llama = (environments / name for name in ("vllm", "openvino", "llama"))
    llama_server, gguf = llama / "build/bin/llama-server", llama / "SmolLM2-135M-Instruct.Q4_1.gguf"
    transformers = _script("transformers", Path(sys.executable))
    vllm_command, vllm_needs = _script("vllm", vllm / "bin/python"), (vllm / "bin/python",)
    openvino_model = openvino / "model"
    return [
        Entry("blora", "blora", MODES, _script("blora", Path(sys.executable)), model),
        Entry(
            "openvino",
            "OpenVINO GenAI",
            ("base",),
            _script("openvino", openvino / "bin/python"),
            openvino_model,
            (openvino / "bin/python", openvino_model / "openvino_model.xml"),
        ),
        Entry("vllm", "vLLM-CPU", ("base",), vllm_command, model, vllm_needs),
        Entry("vllm", "vLLM-CPU", ("adapters",), vllm_command, model, vllm_needs),
        Entry("vllm-gomp", "vLLM-CPU, GNU OpenMP", ("base",), (*vllm_command, GNU), model, vllm_needs),
        Entry("vllm-gomp", "vLLM-CPU, GNU OpenMP", ("adapters",), (*vllm_command, GNU), model, vllm_needs),
        Entry(
            "llama",
            "llama.cpp",
            ("base",),
            (*_script("llama", Path(sys.executable)), "--server", str(llama_server)),
            gguf,
            (llama_server, gguf),
        ),
        Entry("transformers", "transformers", ("base",), transformers, model),
        Entry("peft", "PEFT", ("adapters",), transformers, model),
    ]


def _script(name: str, python: Path) -> tuple[str, ...]:
    return (str(python), str(HERE / f"{name}_worker.py"))
