"""vLLM's CPU build: the compiled base engine, or with --adapter the LoRA engine, which vLLM runs eagerly."""

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

# This file runs in another environment. The repository comes last, so that nothing in it hides a library.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from bench.peers.protocol import Job, Tokens, claim_stdout, serve, worker_arguments

RANK = 16
BATCHED_TOKENS = 4096
KV_GIB = 1


class Vllm:
    def __init__(self, model: Path, adapters: list[Path], rows: int, length: int) -> None:
        # The import comes here, because vLLM reads the environment that main() prepares.
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

        options: dict[str, Any] = {}
        if adapters:
            options = {
                "enable_lora": True,
                "max_loras": len(adapters),
                "max_cpu_loras": len(adapters),
                "max_lora_rank": RANK,
            }
        self._sampling = SamplingParams
        self._adapters = adapters
        self._llm = LLM(
            str(model),
            dtype="bfloat16",
            max_model_len=length,
            max_num_seqs=rows,
            max_num_batched_tokens=BATCHED_TOKENS,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
            generation_config="vllm",
            disable_log_stats=True,
            **options,
        )

    def generate(self, job: Job) -> Tokens:
        sampling = self._sampling(temperature=0, max_tokens=job.max_tokens, ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": prompt} for prompt in job.prompts]
        adapters = [self._lora_request(adapter) for adapter in job.adapters] if self._adapters else None
        outputs = self._llm.generate(prompts, sampling, lora_request=adapters, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def _lora_request(self, adapter: int | None) -> Any:
        from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]

        return None if adapter is None else LoRARequest(str(adapter), adapter + 1, str(self._adapters[adapter]))


def prepare_environment(threads: int, has_intel_openmp: bool) -> None:
    """Sets the environment that vLLM's documentation for the CPU advises, which its engine process inherits. Without
    Intel's OpenMP, vLLM is as fast as a plain installation."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(KV_GIB)
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    openmp = Path(sys.prefix) / "lib/libiomp5.so"
    if has_intel_openmp and openmp.exists():
        os.environ["LD_PRELOAD"] = str(openmp)


def main() -> None:
    parser = worker_arguments(__doc__)
    parser.add_argument(
        "--gnu-openmp", action="store_true", help="use torch's own OpenMP, not Intel's from vLLM's environment"
    )
    args = parser.parse_args()
    answers = claim_stdout()
    prepare_environment(args.threads, not args.gnu_openmp)
    engine = Vllm(args.model, args.adapters, args.rows, args.length)
    mode = "eager (all that vLLM has with LoRA on the CPU)" if args.adapters else "compiled by inductor (its default)"
    settings = f"bf16, {mode}, max_num_batched_tokens {BATCHED_TOKENS}, max_num_seqs {args.rows}, "
    settings += "GNU" if args.gnu_openmp else "Intel"
    settings += f" OpenMP, threads bound, KV {KV_GIB} GiB, no prefix cache"
    serve(answers, engine.generate, version("vllm-cpu"), settings)


if __name__ == "__main__":
    main()
