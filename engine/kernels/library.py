"""Kernels: the native library, one build of the same sources for each instruction set, and the checks before a call.

Calls go through ctypes.PyDLL: they keep the GIL, which would have to be won back after every one. One thread calls;
OpenMP is torch's, so `torch.set_num_threads` governs it.
"""

import ctypes
import logging
import math
from collections.abc import Mapping, Sequence
from ctypes import POINTER, Structure, byref, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from blora.adapters.cpu import CpuLoRAMetadata

from .instruction_sets import instruction_sets

logger = logging.getLogger(__name__)

INTERFACE = 7  # types.h has the same number
DTYPES = {torch.float32: 0, torch.bfloat16: 1}
PANEL = 16  # outputs of a panel of a packed matrix, and the most tokens of a panel of keys
MAX_GROUP = 128  # query heads that share a KV head
MAX_HEAD_DIM = 512


class Epilogue(IntEnum):
    STORE = 0
    ADD = 1
    SILU_MUL = 2
    STORE_FLOAT = 3


class LinearLayer(Structure):
    _fields_ = [
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("out", c_int32),
        ("in_", c_int32),
        ("site", c_int32),
        ("dtype", c_int32),
    ]


class AttentionLayer(Structure):
    _fields_ = [
        ("pages", c_void_p),
        ("page_bytes", c_int64),
        ("offset", c_int64),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("qk_norm", c_void_p),
        ("eps", c_float),
        ("scale", c_float),
        ("softcap", c_float),
        ("window", c_int32),
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("block_size", c_int32),
        ("dtype", c_int32),
        ("unused", c_int32),
    ]


class AttentionPlan(Structure):
    _fields_ = [
        ("num_rows", c_int32),
        ("num_tokens", c_int32),
        ("starts", c_void_p),
        ("seq_lens", c_void_p),
        ("tables", c_void_p),
        ("table_at", c_void_p),
    ]


class DecoderLayer(Structure):
    _fields_ = [
        ("qkv", LinearLayer),
        ("out", LinearLayer),
        ("gate_up", LinearLayer),
        ("down", LinearLayer),
        ("attention", AttentionLayer),
        ("input_norm", c_void_p),
        ("post_attention_norm", c_void_p),
        ("eps", c_float),
        ("unused", c_int32),
    ]


ACTIVATIONS = ("hidden", "normed", "qkv", "attended", "gate_up", "gated")


class Activations(Structure):
    _fields_ = [*((name, c_void_p) for name in ACTIVATIONS), ("num_tokens", c_int32), ("unused", c_int32)]


# The functions of entry.h: the result and the arguments of each.
FUNCTIONS: Mapping[str, tuple[type | None, Sequence[type]]] = {
    "blora_interface": (c_int32, ()),
    "blora_may_run": (c_int32, ()),
    "blora_linear": (None, (POINTER(LinearLayer), c_void_p, c_void_p, c_int32, c_int32, c_int32, c_void_p)),
    "blora_pack": (None, (c_void_p, c_int32, c_int32, c_int32)),
    "blora_unpack_rows": (None, (c_void_p, c_int32, c_int32, c_void_p, c_int32, c_void_p)),
    "blora_rms_norm": (None, (c_void_p, c_void_p, c_int32, c_int32, c_float, c_int32, c_void_p)),
    "blora_silu_mul": (None, (c_void_p, c_int32, c_int32, c_int32, c_void_p)),
    "blora_attention": (None, (POINTER(AttentionLayer), POINTER(AttentionPlan), c_void_p, c_void_p)),
    "blora_decoder": (
        None,
        (POINTER(DecoderLayer), c_int32, POINTER(Activations), POINTER(AttentionPlan), c_void_p, c_void_p),
    ),
    "blora_embed": (None, (c_void_p, c_int32, c_void_p, c_int32, c_int32, c_void_p)),
    "blora_replace_logits": (None, (c_void_p, c_int32, c_void_p, c_int32, c_int32, c_int32, c_void_p)),
    "blora_scan": (None, (c_void_p, c_int32, c_int32, c_void_p, c_void_p, c_void_p)),
    "blora_draw": (c_int32, (c_void_p, c_int32, c_double, c_uint64)),
}


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A packed weight and what stands for it in a call."""

    weight: Tensor  # [out, in] in shape only: the memory is in panels
    bias: Tensor | None  # [out]
    layer: LinearLayer


class Kernels:
    """Shapes are checked at every call, and everything has to be contiguous: what is wrong raises ValueError, a library
    that was built from other sources too. PermissionError: the operating system keeps back what the library needs."""

    def __init__(self, instruction_set: str, path: Path) -> None:
        self.instruction_set = instruction_set
        self.seconds: Tensor | None = None  # [3] float64: `decoder` adds what linear, attention and norm took
        library = ctypes.PyDLL(str(path))
        if not hasattr(library, "blora_interface") or library.blora_interface() != INTERFACE:
            raise ValueError(f"{path.name} was built from other sources")
        if not library.blora_may_run():
            raise PermissionError(f"the system does not let this process use the registers of {instruction_set}")
        for function, (result, arguments) in FUNCTIONS.items():
            bound = getattr(library, function)
            bound.restype, bound.argtypes = result, arguments
        self._library = library

    def pack_linear(self, weight: Tensor, bias: Tensor | None = None, site: int | None = None) -> PackedLinear:
        """Packs a weight in place: it must not be read as a matrix any more. weight: [out, in], in memory for `out`
        rounded up to 16 rows; in is even for bfloat16."""
        check_shape("weight", weight, weight.dtype, (None, None))
        out, in_ = weight.shape
        room = weight.untyped_storage().nbytes() // weight.itemsize - weight.storage_offset()
        if weight.dtype not in DTYPES or not out or not in_ or (weight.dtype == torch.bfloat16 and in_ % 2):
            raise ValueError(f"weight: {list(weight.shape)} of {weight.dtype} cannot be packed")
        if room < -(-out // PANEL) * PANEL * in_:
            raise ValueError(f"weight: its memory does not hold {out} rows rounded up to {PANEL}")
        if bias is not None:
            check_shape("bias", bias, weight.dtype, (out,))
        self._library.blora_pack(weight.data_ptr(), out, in_, DTYPES[weight.dtype])
        address = None if bias is None else bias.data_ptr()
        layer = LinearLayer(weight.data_ptr(), address, out, in_, -1 if site is None else site, DTYPES[weight.dtype])
        return PackedLinear(weight, bias, layer)

    def linear(
        self,
        linear: PackedLinear,
        x: Tensor,
        y: Tensor,
        epilogue: Epilogue,
        lora: CpuLoRAMetadata | None = None,
    ) -> None:
        """y = epilogue(x W^T + what the step's adapters add + bias), rounded once.

        x: [num_tokens, in]. STORE and ADD: y [num_tokens, out]; SILU_MUL: [num_tokens, out / 2], where out is a
        multiple of 32; STORE_FLOAT: [num_tokens, out or more] float32, where more is left as it is.
        lora: the step's adapters.
        """
        epilogue = Epilogue(epilogue)
        layer = linear.layer
        num_tokens, dtype = x.shape[0], linear.weight.dtype
        width = layer.out // 2 if epilogue is Epilogue.SILU_MUL else layer.out
        if epilogue is Epilogue.SILU_MUL and layer.out % (2 * PANEL):
            raise ValueError(f"gate and up of {layer.out} outputs are not whole panels")
        check_shape("x", x, dtype, (None, layer.in_))
        if epilogue is Epilogue.STORE_FLOAT:
            _check_logits(y, num_tokens, width)
        else:
            check_shape("y", y, dtype, (num_tokens, width))
        address = _lora_address(lora, layer, num_tokens)
        self._library.blora_linear(byref(layer), x.data_ptr(), y.data_ptr(), num_tokens, y.shape[1], epilogue, address)

    def unpack_rows(self, linear: PackedLinear, ids: Tensor, y: Tensor) -> None:
        """y[i] = the weight's row ids[i]. ids: [n] int64, y: [n, in]."""
        layer = linear.layer
        check_shape("ids", ids, torch.int64, (None,))
        check_shape("y", y, linear.weight.dtype, (len(ids), layer.in_))
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < layer.out:
            raise ValueError(f"ids: not all are rows of {layer.out}")
        self._library.blora_unpack_rows(layer.weight, layer.in_, layer.dtype, ids.data_ptr(), len(ids), y.data_ptr())

    def embed(self, site: int, ids: Tensor, y: Tensor, lora: CpuLoRAMetadata) -> None:
        """Changes embeddings as the step's adapters do. ids: [n] int64, y: [n, hidden]."""
        check_shape("ids", ids, torch.int64, (None,))
        check_shape("y", y, lora.dtype, (len(ids), None))
        layer = LinearLayer(None, None, y.shape[1], lora.num_inputs(site), site, dtype_code("lora", lora.dtype))
        if any(adapter.shapes.get(site, (0, y.shape[1]))[1] != y.shape[1] for adapter in lora.adapters):
            raise ValueError(f"y: embeddings of {y.shape[1]} are not as wide as an adapter's")
        num_ids = max(layer.in_, lora.vocab_size, 1)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < num_ids:
            raise ValueError(f"ids: not all are tokens of {num_ids}")
        address = _lora_address(lora, layer, len(ids))
        self._library.blora_embed(address, site, ids.data_ptr(), y.shape[1], layer.dtype, y.data_ptr())

    def replace_logits(self, head: PackedLinear, x: Tensor, y: Tensor, lora: CpuLoRAMetadata) -> None:
        """The logits of rows that the step's adapters have in place of the head's, or beyond them.

        x: [n, in], y: [n, out or more] float32, wide enough for all of them.
        """
        layer = head.layer
        check_shape("x", x, head.weight.dtype, (None, layer.in_))
        _check_logits(y, len(x), max(layer.out, lora.vocab_size))
        address = _lora_address(lora, layer, len(x))
        self._library.blora_replace_logits(
            address, layer.site, x.data_ptr(), layer.in_, y.shape[1], layer.dtype, y.data_ptr()
        )

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, y: Tensor) -> None:
        """x, y: [n, width], weight: [width]. y may be x."""
        check_shape("x", x, weight.dtype, (None, len(weight)))
        check_shape("y", y, weight.dtype, tuple(x.shape))
        check_shape("weight", weight, x.dtype, (x.shape[1],))
        self._library.blora_rms_norm(
            x.data_ptr(), weight.data_ptr(), *x.shape, eps, dtype_code("x", x.dtype), y.data_ptr()
        )

    def silu_mul(self, x: Tensor, y: Tensor) -> None:
        """y = silu(first half of x) * second half. x: [n, 2 * width], y: [n, width]."""
        check_shape("y", y, y.dtype, (None, None))
        check_shape("x", x, y.dtype, (len(y), 2 * y.shape[1]))
        self._library.blora_silu_mul(x.data_ptr(), *y.shape, dtype_code("y", y.dtype), y.data_ptr())

    def attention(self, layer: AttentionLayer, plan: AttentionPlan, qkv: Tensor, y: Tensor) -> None:
        """Norms and rotates q and k, writes k and v into their pages, attends. `CpuAttention` makes layer and plan.

        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], y: [num_tokens, num_heads * head_dim].
        """
        dtype = torch.float32 if layer.dtype == 0 else torch.bfloat16
        width = layer.num_heads * layer.head_dim
        check_shape("qkv", qkv, dtype, (plan.num_tokens, width + 2 * layer.num_kv_heads * layer.head_dim))
        check_shape("y", y, dtype, (plan.num_tokens, width))
        self._library.blora_attention(byref(layer), byref(plan), qkv.data_ptr(), y.data_ptr())

    def decoder(
        self,
        layers: ctypes.Array[DecoderLayer],
        activations: Sequence[Tensor | None],
        plan: AttentionPlan,
        lora: CpuLoRAMetadata | None,
    ) -> None:
        """Runs all layers, which have the same shapes. layers: an array of the structure.

        activations: hidden, normed, qkv, attended, gate_up (None where gate and up are whole panels) and gated, as the
        structure says. Changes hidden. lora: the step's adapters.
        """
        first = layers[0]
        heads = first.attention.num_heads * first.attention.head_dim
        widths = (first.qkv.in_, first.qkv.in_, first.qkv.out, heads, first.gate_up.out, first.down.in_)
        dtype = torch.float32 if first.qkv.dtype == 0 else torch.bfloat16
        if (activations[4] is None) != (first.down.in_ % PANEL == 0):
            raise ValueError("gate_up: to be given where gate and up are not whole panels, and only there")
        for name, tensor, width in zip(ACTIVATIONS, activations, widths, strict=True):
            if tensor is not None:
                check_shape(name, tensor, dtype, (plan.num_tokens, width))
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in activations]
        address = _lora_address(lora, layers[len(layers) - 1].down, plan.num_tokens)
        at = Activations(*addresses, plan.num_tokens, 0)
        seconds = None if self.seconds is None else self.seconds.data_ptr()
        self._library.blora_decoder(layers, len(layers), byref(at), byref(plan), address, seconds)

    def scan(self, logits: Tensor, vocab_sizes: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """The first of the largest of each row, and whether the row is finite. logits: [n, vocab] float32; vocab_sizes:
        [n] how many of them a row has, None is all. Returns [n] int64 and [n] bool."""
        check_shape("logits", logits, torch.float32, (None, None))
        num_rows, width = logits.shape
        ids = torch.empty(num_rows, dtype=torch.int64)
        is_finite = torch.empty(num_rows, dtype=torch.bool)
        if not width:
            raise ValueError("logits: no vocabulary")
        if vocab_sizes is None:
            sizes = None
        elif len(vocab_sizes) == num_rows and all(1 <= size <= width for size in vocab_sizes):
            sizes = (c_int32 * num_rows)(*vocab_sizes)
        else:
            raise ValueError(f"logits: {num_rows} rows of {width} are not of {vocab_sizes}")
        self._library.blora_scan(logits.data_ptr(), num_rows, width, sizes, ids.data_ptr(), is_finite.data_ptr())
        return ids, is_finite

    def draw(self, logits: Tensor, temperature: float, key: int) -> int:
        """A token from softmax(logits / temperature). logits: [vocab] float32 without NaN; temperature above 0."""
        check_shape("logits", logits, torch.float32, (None,))
        if not len(logits) or not 0 < temperature < math.inf:
            raise ValueError(f"nothing to draw from {len(logits)} logits at temperature {temperature}")
        return int(self._library.blora_draw(logits.data_ptr(), len(logits), temperature, key))


def _lora_address(lora: CpuLoRAMetadata | None, layer: LinearLayer, num_tokens: int) -> int | None:
    """The address of a plan that fits the layer, which has the last site that is asked for."""
    if lora is None:
        return None
    if not isinstance(lora, CpuLoRAMetadata):
        raise TypeError(f"lora: {type(lora).__name__} is no plan of these kernels")
    if lora.num_tokens > num_tokens or layer.site >= lora.num_sites or DTYPES.get(lora.dtype) != layer.dtype:
        raise ValueError(
            f"lora: {lora.num_tokens} tokens and {lora.num_sites} sites of {lora.dtype} for {num_tokens} tokens"
        )
    for adapter in lora.adapters:
        num_inputs, num_outputs = adapter.shapes.get(layer.site, (layer.in_, 0))
        if num_inputs != layer.in_ or num_outputs > layer.out:
            raise ValueError(f"lora: an adapter of {num_inputs} inputs and {num_outputs} outputs at site {layer.site}")
    return lora.address


def dtype_code(name: str, dtype: torch.dtype) -> int:
    """As types.h has it. Raises ValueError for a type that has no kernels."""
    if dtype not in DTYPES:
        raise ValueError(f"{name}: there are no kernels for {dtype}")
    return DTYPES[dtype]


def _check_logits(y: Tensor, num_rows: int, width: int) -> None:
    check_shape("y", y, torch.float32, (num_rows, None))
    if y.shape[1] < width:
        raise ValueError(f"y: {y.shape[1]} columns for {width} logits")


def check_shape(name: str, tensor: Tensor, dtype: torch.dtype, shape: Sequence[int | None]) -> None:
    """Raises ValueError unless it is a contiguous CPU tensor of the dtype and shape. None is any size."""
    is_fitting = tensor.dim() == len(shape) and all(
        wanted is None or size == wanted for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not is_fitting or tensor.dtype is not dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(
            f"{name}: {list(tensor.shape)} of {tensor.dtype} is not {list(shape)} of {dtype}, contiguous on the CPU"
        )


@cache
def load_kernels(instruction_set: str | None = None) -> Kernels | None:
    """The build for an instruction set, or the best that was built and may run here; None when there is none of these
    sources. ValueError: this machine does not run that instruction set. PermissionError: the operating system keeps
    back what it needs."""
    names = instruction_sets()
    if instruction_set is not None and instruction_set not in names:
        raise ValueError(f"this machine runs {', '.join(names)}, not {instruction_set}")
    for name in names if instruction_set is None else [instruction_set]:
        for path in Path(__file__).parent.glob(f"_{name}.*so"):
            try:
                return Kernels(name, path)
            except PermissionError as error:
                if instruction_set is not None:
                    raise
                logger.warning("%s", error)
            except ValueError as error:
                logger.warning("%s: install blora again", error)
    return None
