"""transformers: generate() on a static batch of base rows, and with --adapter PEFT's adapter_names in that batch."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

# This file runs in another environment. The repository comes last, so that nothing in it hides a library.
sys.path.append(str(Path(__file__).resolve().parents[2]))

from bench.peers.protocol import Job, Tokens, claim_stdout, serve, worker_arguments

PEFT_BASE = "__base__"  # PEFT's name for a row without adapter


class Transformers:
    def __init__(self, model: Path, adapters: list[Path]) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, attn_implementation="sdpa")
        # An end token of the model's own defaults would end rows early.
        self._model.generation_config = GenerationConfig(pad_token_id=0)
        self._mixes_adapters = bool(adapters)
        if adapters:
            self._model = _with_adapters(self._model, adapters)
        self._model.eval()

    @torch.inference_mode()
    def generate(self, job: Job) -> Tokens:
        prompts = torch.tensor(job.prompts)
        output = self._model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            generation_config=GenerationConfig(do_sample=False, max_new_tokens=job.max_tokens, pad_token_id=0),
            **self._adapter_names(job),
        )
        tokens: Tokens = output[:, prompts.shape[1] :].tolist()
        return tokens

    def _adapter_names(self, job: Job) -> dict[str, list[str]]:
        if not self._mixes_adapters:
            return {}
        return {"adapter_names": [PEFT_BASE if adapter is None else str(adapter) for adapter in job.adapters]}


def _with_adapters(model: Any, adapters: list[Path]) -> Any:
    from peft import PeftModel

    mixed = PeftModel.from_pretrained(model, adapters[0], adapter_name="0", autocast_adapter_dtype=False)
    for index, path in enumerate(adapters[1:], start=1):
        mixed.load_adapter(path, adapter_name=str(index), autocast_adapter_dtype=False)
    return mixed


def main() -> None:
    args = worker_arguments(__doc__).parse_args()
    answers = claim_stdout()
    torch.set_num_threads(args.threads)
    model = Transformers(args.model, args.adapters)
    settings = "bf16, sdpa, dynamic cache, no compilation"
    if args.adapters:
        serve(answers, model.generate, version("peft"), f"adapter_names in generate(), bf16 adapters, {settings}")
    else:
        serve(answers, model.generate, version("transformers"), settings)


if __name__ == "__main__":
    main()
