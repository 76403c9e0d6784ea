"""GGUFSource: the tensors of a GGUF file, dequantised one at a time, under their Hugging Face names."""

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor

from .gguf_config import ROPE_DIVISORS, GGUFFile
from .tensor_source import TensorSource

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GGUFSource(TensorSource):
    def __init__(self, path: Path) -> None:
        self._file = GGUFFile(path)
        # The rope divisors belong to the config; they are no parameter.
        self._gguf_names = {hf_name(name): name for name in self._file.tensors if name != ROPE_DIVISORS}
        # "llama" stores q and k for a rotation of neighbours; undoing that needs their numbers of heads.
        self._num_heads: dict[str, int] = {}
        if self._file.architecture == "llama":
            num_heads = self._file.get("attention.head_count")
            num_kv_heads = self._file.get("attention.head_count_kv", num_heads)
            self._num_heads = {"attn_q": num_heads, "attn_k": num_kv_heads}

    def names(self) -> Collection[str]:
        return self._gguf_names.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._file.shape(self._gguf_names[name])

    def get(self, name: str) -> Tensor:
        """Returns the tensor in float32, whatever the file holds."""
        from gguf.quants import dequantize

        gguf_name = self._gguf_names[name]
        stored = self._file.tensors[gguf_name]
        values = dequantize(stored.data, stored.tensor_type)
        tensor = torch.from_numpy(values if values.flags.writeable else values.copy())
        num_heads = self._num_heads.get(gguf_name.split(".")[-2])
        return tensor if num_heads is None else to_halves(tensor, num_heads)


def hf_name(name: str) -> str:
    """The Hugging Face name: "blk.3.attn_q.weight" becomes "model.layers.3.self_attn.q_proj.weight". An unknown name
    stays as it is, so that the loader reports the tensor as unused."""
    stem, _, kind = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    first, _, rest = stem.partition(".")
    layer, _, module = rest.partition(".")
    if first == "blk" and module in LAYER_NAMES:
        return f"model.layers.{layer}.{LAYER_NAMES[module]}.{kind}"
    return name


def to_halves(tensor: Tensor, num_heads: int) -> Tensor:
    """Undoes llama.cpp's reordering of q and k: rows (0, 1), (2, 3), ... of a head become (0, half), (1, half + 1), ...

    tensor: [num_heads * head_dim, ...]. Returns the same shape.
    """
    pairs = tensor.view(num_heads, -1, 2, *tensor.shape[1:])  # [num_heads, head_dim // 2, 2, ...]
    return pairs.transpose(1, 2).reshape(tensor.shape)
