"""Trains the four demo adapters on data that the tasks make, saves them in 16-bit and measures them as saved.

    python bench/demo/train_adapters.py [--task NAME] [--evaluate-only]

Fails if an adapter is too big or right too rarely, or if the base model is right too often for the adapter to matter.
Owns the shape of each adapter. Knows nothing of a task's content.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

# When Python runs this file, it looks for modules beside it only, not in the repository's root.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.demo.example import Example
from bench.demo.tasks import TASKS, Task, held_out_examples, train_examples

MODEL_NAME = "SmolLM2-135M-Instruct"
DEFAULT_MODEL = Path(".cache/models") / MODEL_NAME
DEFAULT_OUT = Path("bench/demo/adapters")

END = "<|im_end|>"
SEED = 1
BATCH_SIZE = 8
WARMUP_STEPS = 10
# Batches are cut from examples sorted by length within a window of this many batches, so that they have little padding.
SORT_WINDOW = 16

MAX_BYTES = 2_500_000
MIN_ADAPTER_ACCURACY = 0.90
MAX_BASE_ACCURACY = 0.20


@dataclass(frozen=True)
class Recipe:
    """The shape and the training of one task's adapter. The four differ, to exercise a server."""

    task: str
    rank: int
    alpha: int
    modules: tuple[str, ...]
    is_rslora: bool
    learning_rate: float
    num_steps: int


RECIPES = (
    Recipe("ticket-routing", 4, 8, ("gate_proj", "up_proj", "down_proj"), False, 1e-3, 320),
    Recipe("appointment-json", 8, 16, ("q_proj", "k_proj", "v_proj", "o_proj"), False, 1.5e-3, 160),
    Recipe("shop-sql", 16, 16, ("q_proj", "v_proj"), True, 7e-4, 320),
    Recipe("commit-style", 32, 32, ("o_proj",), False, 1e-3, 240),
)


@dataclass(frozen=True)
class Figures:
    """Measurements of one saved adapter. Accuracies are shares of the held-out examples, from 0 to 1."""

    task: str
    rank: int
    alpha: int
    is_rslora: bool
    modules: list[str]
    bytes: int
    base_accuracy: float
    adapter_accuracy: float

    def failures(self) -> list[str]:
        checks = {
            f"{self.bytes} bytes, at most {MAX_BYTES} allowed": self.bytes <= MAX_BYTES,
            f"adapter right on {self.adapter_accuracy:.0%}": self.adapter_accuracy >= MIN_ADAPTER_ACCURACY,
            f"base model right on {self.base_accuracy:.0%}": self.base_accuracy < MAX_BASE_ACCURACY,
        }
        return [f"{self.task}: {text}" for text, is_met in checks.items() if not is_met]


def load_model(folder: Path, dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def adapter_config(recipe: Recipe) -> LoraConfig:
    return LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=list(recipe.modules),
        use_rslora=recipe.is_rslora,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )


def encode(tokenizer: Any, task: Task, example: Example) -> tuple[list[int], list[int]]:
    """Returns the token ids of the prompt and of the answer with its end, encoded apart, as a server sees them."""
    prompt = tokenizer.encode(task.prompt(example), add_special_tokens=False)
    answer = tokenizer.encode(example.answer + END, add_special_tokens=False)
    if len(answer) > task.max_tokens:
        raise ValueError(f"{task.name}: an answer of {len(answer)} tokens exceeds max_tokens={task.max_tokens}")
    return prompt, answer


def make_batches(tokenizer: Any, task: Task, num_steps: int) -> list[list[tuple[list[int], list[int]]]]:
    """Returns batches of examples of similar length, in random order, for one pass."""
    examples = train_examples(task, num_steps * BATCH_SIZE, SEED)
    pairs = [encode(tokenizer, task, example) for example in examples]
    batches = []
    for start in range(0, len(pairs), SORT_WINDOW * BATCH_SIZE):
        window = sorted(pairs[start : start + SORT_WINDOW * BATCH_SIZE], key=lambda pair: len(pair[0]) + len(pair[1]))
        batches += [window[first : first + BATCH_SIZE] for first in range(0, len(window), BATCH_SIZE)]
    Random(SEED).shuffle(batches)
    return batches


def answer_loss(model: Any, batch: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """Returns the mean cross entropy of the answers' tokens. Only their positions are projected to the vocabulary."""
    width = max(len(prompt) + len(answer) for prompt, answer in batch)
    tokens = torch.zeros(len(batch), width, dtype=torch.long)  # [num_sequences, width]
    is_target = torch.zeros(len(batch), width, dtype=torch.bool)  # [num_sequences, width]
    for row, (prompt, answer) in enumerate(batch):
        end = len(prompt) + len(answer)
        tokens[row, :end] = torch.tensor(prompt + answer)
        is_target[row, len(prompt) : end] = True
    # Padding is on the right, which causal attention never reads, so it needs no mask.
    causal = model.get_base_model()
    hidden = causal.model(input_ids=tokens, use_cache=False).last_hidden_state  # [num_sequences, width, hidden]
    logits = causal.lm_head(hidden[:, :-1][is_target[:, 1:]])  # [num_targets, vocabulary]
    return torch.nn.functional.cross_entropy(logits.float(), tokens[is_target])


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Returns the learning rate of a step: a short linear warm-up, then a linear decay to zero."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return recipe.learning_rate * warmup * (1 - step / recipe.num_steps)


def train(model: Any, tokenizer: Any, recipe: Recipe) -> Any:
    """Trains an adapter; returns a PEFT model with it in float32."""
    torch.manual_seed(SEED)
    peft_model = get_peft_model(model, adapter_config(recipe))
    weights = [weight for weight in peft_model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    batches = tqdm(make_batches(tokenizer, TASKS[recipe.task], recipe.num_steps), desc=recipe.task, unit="step")
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, recipe)
        loss = answer_loss(peft_model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        batches.set_postfix(loss=f"{loss.item():.4f}")
    return peft_model


def save(peft_model: Any, folder: Path) -> None:
    """Saves a PEFT folder with bf16 weights and only the two files that a server reads."""
    for weight in peft_model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.bfloat16)
    shutil.rmtree(folder, ignore_errors=True)
    peft_model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    tidy_config(folder / "adapter_config.json")


def tidy_config(file: Path) -> None:
    """Replaces this machine's path of the base model, and sorts the modules, whose order changes from run to run."""
    config = json.loads(file.read_text())
    config["base_model_name_or_path"] = MODEL_NAME
    config["target_modules"] = sorted(config["target_modules"])
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def in_batches(examples: list[Example], size: int) -> Iterator[list[Example]]:
    for start in range(0, len(examples), size):
        yield examples[start : start + size]


@torch.inference_mode()
def complete(model: Any, tokenizer: Any, task: Task, examples: list[Example]) -> list[str]:
    """Returns greedy completions, without the end token."""
    prompts = [task.prompt(example) for example in examples]
    inputs = tokenizer(prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    end_id = tokenizer.convert_tokens_to_ids(END)
    output = model.generate(
        **inputs, max_new_tokens=task.max_tokens, do_sample=False, eos_token_id=end_id, pad_token_id=end_id
    )
    generated = output[:, inputs["input_ids"].shape[1] :]
    return [str(text) for text in tokenizer.batch_decode(generated, skip_special_tokens=True)]


def accuracy(model: Any, tokenizer: Any, task: Task) -> float:
    examples = held_out_examples(task)
    num_right = 0
    for batch in in_batches(examples, 25):
        for example, output in zip(batch, complete(model, tokenizer, task, batch), strict=True):
            is_right = task.check(example, output)
            num_right += is_right
            if not is_right and isinstance(model, PeftModel):
                print(f"  wrong: {example.text!r} -> {output!r}, expected {example.answer!r}")
    return num_right / len(examples)


def measure(recipe: Recipe, base_folder: Path, folder: Path, dtype: torch.dtype) -> Figures:
    """Measures the saved files, with the adapter's weights rounded to 16-bit, as a server gets them."""
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    model, task = load_model(base_folder, dtype), TASKS[recipe.task]
    base_accuracy = accuracy(model, tokenizer, task)
    peft_model = PeftModel.from_pretrained(model, folder, autocast_adapter_dtype=False).to(dtype)
    return Figures(
        task=recipe.task,
        rank=recipe.rank,
        alpha=recipe.alpha,
        is_rslora=recipe.is_rslora,
        modules=list(recipe.modules),
        bytes=sum(file.stat().st_size for file in folder.iterdir()),
        base_accuracy=base_accuracy,
        adapter_accuracy=accuracy(peft_model, tokenizer, task),
    )


def train_and_save(recipe: Recipe, base_folder: Path, folder: Path) -> None:
    start = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(base_folder)
    save(train(load_model(base_folder, torch.float32), tokenizer, recipe), folder)
    print(f"{recipe.task}: trained in {time.monotonic() - start:.0f} s")


def write_figures(file: Path, measured: list[Figures]) -> None:
    """Replaces the rows of the measured tasks and keeps the others, in the order of the recipes."""
    rows = {row["task"]: row for row in json.loads(file.read_text())} if file.exists() else {}
    rows |= {figures.task: vars(figures) for figures in measured}
    ordered = [rows[recipe.task] for recipe in RECIPES if recipe.task in rows]
    file.write_text(json.dumps(ordered, indent=2) + "\n")


def print_table(measured: list[Figures]) -> None:
    print(f"{'task':<18}{'rank':>5}  {'modules':<30}{'bytes':>10}{'base %':>8}{'adapter %':>11}")
    for row in measured:
        modules = " ".join(module.removesuffix("_proj") for module in row.modules)
        accuracies = f"{row.base_accuracy * 100:>8.0f}{row.adapter_accuracy * 100:>11.0f}"
        print(f"{row.task:<18}{row.rank:>5}  {modules:<30}{row.bytes:>10}{accuracies}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="base model (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder of the adapters (default: %(default)s)")
    parser.add_argument("--task", choices=[recipe.task for recipe in RECIPES], help="task to train (default: all)")
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="data type of the evaluation (default: %(default)s)",
    )
    parser.add_argument(
        "--evaluate-only", action="store_true", help="measure the adapters in the folder and write nothing"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    measured = []
    for recipe in RECIPES:
        if arguments.task not in (None, recipe.task):
            continue
        folder = arguments.out / recipe.task
        if not arguments.evaluate_only:
            train_and_save(recipe, arguments.model, folder)
        measured.append(measure(recipe, arguments.model, folder, getattr(torch, arguments.dtype)))
    print_table(measured)
    if not arguments.evaluate_only:
        write_figures(arguments.out / "figures.json", measured)
    failures = [text for figures in measured for text in figures.failures()]
    if failures:
        sys.exit("missed: " + "; ".join(failures))


if __name__ == "__main__":
    main()
