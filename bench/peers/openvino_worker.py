"""OpenVINO GenAI: ContinuousBatchingPipeline on a model that optimum-intel exported. --model is the exported folder."""

import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import openvino  # type: ignore[import-not-found]
import openvino_genai  # type: ignore[import-not-found]

# This file runs in another environment. The repository comes last, so that nothing in it hides a library.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from bench.peers.protocol import Job, Tokens, claim_stdout, serve, worker_arguments

BATCHED_TOKENS = 4096
CACHE_GB = 1


class OpenVino:
    def __init__(self, model: Path, threads: int, rows: int) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = BATCHED_TOKENS
        scheduler.max_num_seqs = rows
        scheduler.cache_size = CACHE_GB
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = False
        properties = {
            "INFERENCE_PRECISION_HINT": "bf16",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",  # one stream of all threads, which continuous batching needs
        }
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(str(model), scheduler, "CPU", properties)

    def generate(self, job: Job) -> Tokens:
        config = openvino_genai.GenerationConfig()
        config.do_sample = False
        config.ignore_eos = True
        config.max_new_tokens = job.max_tokens
        config.min_new_tokens = job.max_tokens
        prompts = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in job.prompts]
        results = self._pipeline.generate(prompts, [config] * len(prompts))
        return [list(result.m_generation_ids[0]) for result in results]


def main() -> None:
    parser = worker_arguments(__doc__)
    args = parser.parse_args()
    if args.adapters:
        parser.error("continuous batching refuses different adapters in one batch")
    answers = claim_stdout()
    engine = OpenVino(args.model, args.threads, args.rows)
    settings = f"continuous batching, bf16, max_num_batched_tokens {BATCHED_TOKENS}, cache {CACHE_GB} GB, "
    settings += "PERFORMANCE_HINT LATENCY, KV cache in u8 (its default), no prefix cache"
    serve(answers, engine.generate, version("openvino-genai"), settings)


if __name__ == "__main__":
    main()
