"""blora in this process. One engine serves base rows and rows with adapters."""

import sys
from importlib.metadata import version
from pathlib import Path

# This file runs in another environment. The repository comes last, so that nothing in it hides a library.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from bench.peers.protocol import Job, Tokens, claim_stdout, serve, worker_arguments
from blora.engine import LLM, SamplingParams


class Blora:
    def __init__(self, model: Path, adapters: list[Path], threads: int, rows: int, length: int) -> None:
        names = [str(index) for index in range(len(adapters))]
        self._llm = LLM(
            str(model),
            adapters=dict(zip(names, adapters, strict=True)),
            dtype="bfloat16",
            threads=threads,
            memory="1GiB",
            max_num_seqs=rows,
            max_model_len=length,
            enable_prefix_caching=False,
            generation_config="vllm",
        )

    def generate(self, job: Job) -> Tokens:
        sampling = SamplingParams(temperature=0, max_tokens=job.max_tokens, ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": prompt} for prompt in job.prompts]
        names = [None if adapter is None else str(adapter) for adapter in job.adapters]
        outputs = self._llm.generate(prompts, sampling, lora_request=names, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


def main() -> None:
    args = worker_arguments(__doc__).parse_args()
    answers = claim_stdout()
    engine = Blora(args.model, args.adapters, args.threads, args.rows, args.length)
    serve(answers, engine.generate, version("blora"), "bf16, defaults, memory 1 GiB, no prefix cache")


if __name__ == "__main__":
    main()
