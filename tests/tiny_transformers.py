"""Tiny random models of transformers, and a driver that runs blora's model over paged rows as the engine would."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blora.adapters.device_pool import DevicePool
from blora.adapters.lora import LoRABackend, LoRAMetadata
from blora.engine.attention.base import PagedRows
from blora.engine.attention.reference import ReferenceAttention
from blora.engine.memory.arena import Arena, KVLayout
from blora.engine.memory.page_size import page_bytes_for
from blora.engine.model.batch import ForwardBatch
from blora.engine.model.decoder import CausalLM
from blora.engine.model.loader import load_tensors
from blora.engine.model.ops import TorchOps
from blora.engine.model.shard_group import ALONE
from blora.engine.model_files.open_checkpoint import open_checkpoint
from blora.engine.model_files.read_config import load_model_config
from blora.engine.startup.choose_backend import choose_backend

VOCAB_SIZE = 97
MAX_POSITIONS = 96
BLOCK_SIZE = 4
NUM_PAGES = 64
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
}


class NoLoRA(LoRABackend):
    """Fails the test on any call: a batch without adapters must not call LoRA."""

    def plan(self, *_: Any) -> LoRAMetadata:
        raise AssertionError("a base batch planned LoRA")

    def changes_head(self, *_: Any) -> bool:
        raise AssertionError("a base batch asked about LoRA")

    def run(self, *_: Any) -> None:
        raise AssertionError("a base batch ran LoRA")

    def embed(self, *_: Any) -> None:
        raise AssertionError("a base batch ran LoRA")


class Driver:
    """A loaded model, an arena full of NaN, and one scattered block table per row."""

    def __init__(
        self,
        path: Path,
        num_rows: int,
        dtype: torch.dtype = torch.float32,
        lora: LoRABackend | None = None,
        backend: str = "reference",
    ):
        self.config = load_model_config(path)
        config = self.config
        layout = KVLayout(config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, dtype)
        arena = Arena(layout, NUM_PAGES, page_bytes_for(layout.block_bytes, 0))
        for layer in range(config.num_layers):
            arena.kv_layer(layer).fill_(torch.nan)
        tensors = load_tensors(config, open_checkpoint(path), dtype, progress=False)
        if backend == "reference":
            self.attention: Any = ReferenceAttention(arena, config.num_heads, config.head_dim**-0.5)
            self.model: Any = CausalLM(config, tensors, self.attention, lora or NoLoRA(), TorchOps(config))
        else:
            pool = DevicePool(arena.pages, dtype)
            built = choose_backend(backend, config, dtype, BLOCK_SIZE).build(config, tensors, arena, pool, ALONE)
            self.attention, self.model = built.attention, built.model
        pages = torch.randperm(NUM_PAGES, generator=torch.Generator().manual_seed(5)).tolist()
        self.tables = [pages[row::num_rows] for row in range(num_rows)]
        self.num_computed = [0] * num_rows

    def step(self, new_tokens: dict[int, list[int]], lora: LoRAMetadata | None = None) -> dict[int, Tensor]:
        """Runs one step. new_tokens: row -> its next tokens. Returns the logits of each row: row -> [num_new,
        vocab]."""
        starts = {row: self.num_computed[row] for row in new_tokens}
        lens = [len(tokens) for tokens in new_tokens.values()]
        for row, tokens in new_tokens.items():
            self.num_computed[row] += len(tokens)
        rows = PagedRows(
            query_lens=lens,
            seq_lens=[self.num_computed[row] for row in new_tokens],
            block_tables=[self.tables[row] for row in new_tokens],
        )
        batch = ForwardBatch(
            token_ids=torch.tensor([token for tokens in new_tokens.values() for token in tokens]),
            positions=torch.tensor([starts[row] + i for row, tokens in new_tokens.items() for i in range(len(tokens))]),
            logits_at=torch.arange(sum(lens)),
            attention=self.attention.plan(rows),
            lora=lora,
        )
        logits = self.model.compute_logits(self.model.forward(batch))
        return dict(zip(new_tokens, logits.split(lens), strict=True))

    def run(self, sequences: Sequence[list[int]], chunks: Sequence[int]) -> list[Tensor]:
        """Computes each sequence in chunks: chunk i of all rows with tokens left is one step, and the last chunk size
        repeats to the end. Returns [len(sequence), vocab] for each."""
        logits: list[list[Tensor]] = [[] for _ in sequences]
        index = 0
        while True:
            size = chunks[min(index, len(chunks) - 1)]
            ranges = [slice(start, start + size) for start in self.num_computed]
            new_tokens = {row: tokens[ranges[row]] for row, tokens in enumerate(sequences) if tokens[ranges[row]]}
            if not new_tokens:
                return [torch.cat(parts) for parts in logits]
            for row, part in self.step(new_tokens).items():
                logits[row].append(part)
            index += 1


@dataclass(frozen=True)
class Tiny:
    """Makes tiny models and compares them. Tests set limits for the differences that `worst` returns."""

    folder: Path

    def save(self, architecture: str, seed: int = 0, **fields: Any) -> Any:
        """Makes a random float32 model of transformers and saves it in `folder`."""
        import transformers

        torch.manual_seed(seed)
        config_class = getattr(transformers, architecture.replace("ForCausalLM", "Config"))
        # eager attention: the fused kernels of torch have their own rules for masks
        config = config_class(**{**SIZES, **fields}, attn_implementation="eager", initializer_range=0.2)
        model = getattr(transformers, architecture)(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias") or "norm" in name:  # zeros and ones would hide a mistake
                    parameter.add_(torch.randn_like(parameter) * 0.3)
        model.save_pretrained(self.folder)
        return model

    def driver(self, num_rows: int = 1, **options: Any) -> Driver:
        return Driver(self.folder, num_rows, **options)

    def sequences(self, *lengths: int) -> list[list[int]]:
        generator = torch.Generator().manual_seed(11)
        return [torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]

    def expected(self, model: Any, sequence: list[int]) -> Tensor:
        """Returns the logits that transformers computes for one sequence on its own: [len(sequence), vocab]."""
        with torch.no_grad():
            logits: Tensor = model(torch.tensor([sequence])).logits[0]
        return logits

    def worst(self, model: Any, chunks: Sequence[int], path: Path | None = None, backend: str = "reference") -> float:
        """Returns the largest difference between the logits of blora, in mixed batches cut by `chunks`, and of
        transformers."""
        sequences = self.sequences(37, 5, 22, 1)
        ours = Driver(path or self.folder, len(sequences), backend=backend).run(sequences, chunks)
        pairs = zip(ours, sequences, strict=True)
        return max((logits - self.expected(model, sequence)).abs().max().item() for logits, sequence in pairs)
