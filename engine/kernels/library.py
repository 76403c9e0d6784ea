"""Kernels: the native library, and the checks before each call. The same sources are built for each instruction set.

Calls go through ctypes.PyDLL and keep the GIL: a call that released it would have to win it back afterwards. So only
one thread at a time is in the library, and any thread may call it. The library has threads of its own (team.h), none of
which sees Python; a fork leaves them behind, and the child's first call starts others.
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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blora.adapters.cpu import CpuLoRAMetadata

from .instruction_sets import instruction_sets

logger = logging.getLogger(__name__)
Mask = np.ndarray[Any, np.dtype[np.uint32]]

INTERFACE = 8  # entry.h has the same number
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
    "blora_set_num_threads": (None, (c_int32,)),
    "blora_set_openmp_threads": (c_int32, (c_int32,)),
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
    "blora_mask": (None, (c_void_p, c_int32, c_int32, c_void_p, c_void_p, c_void_p)),
    "blora_draw": (c_int32, (c_void_p, c_int32, c_double, c_uint64)),
}


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """A packed weight, and the structure that describes it to a call."""

    weight: Tensor  # its shape is [out, in], but its memory holds panels
    bias: Tensor | None  # [out]
    layer: LinearLayer


class Kernels:
    """One build of the library. Every call checks shapes, dtypes and contiguity first, and raises ValueError.

    The constructor raises ValueError for a library built from other sources, and PermissionError where the operating
    system withholds the registers that the library needs.
    """

    def __init__(self, instruction_set: str, path: Path) -> None:
        self.instruction_set = instruction_set
        self.seconds: Tensor | None = None  # [3] float64: `decoder` adds the seconds of linear, attention and norm
        library = ctypes.PyDLL(str(path))
        has_all = all(hasattr(library, function) for function in FUNCTIONS)
        if not has_all or library.blora_interface() != INTERFACE:
            raise ValueError(f"{path.name} was built from other sources than this library.py")
        if not library.blora_may_run():
            raise PermissionError(f"the system does not let this process use the registers of {instruction_set}")
        for function, (result, arguments) in FUNCTIONS.items():
            bound = getattr(library, function)
            bound.restype, bound.argtypes = result, arguments
        self.library = library
        self._num_threads = 1

    @property
    def num_threads(self) -> int:
        """The number of threads that share each call's work, the calling one included."""
        return self._num_threads

    @num_threads.setter
    def num_threads(self, number: int) -> None:
        if number == self._num_threads:
            return
        if number < 1:
            raise ValueError(f"num_threads: {number} is not at least 1")
        self.library.blora_set_num_threads(number)
        self._num_threads = number

    def set_openmp_threads(self, number: int) -> int:
        """Sets the threads of OpenMP, and so of torch's operations, for the calling thread. Returns the number
        before."""
        return int(self.library.blora_set_openmp_threads(number))

    def pack_linear(self, weight: Tensor, bias: Tensor | None = None, site: int | None = None) -> PackedLinear:
        """Packs a weight in place; after that it must not be read as a matrix.

        weight: [out, in], in memory for `out` rounded up to 16 rows; `in` is even for bfloat16.
        bias: [out], or None.
        site: the number under which adapters change the layer; None: no adapter can.
        """
        check_shape("weight", weight, weight.dtype, (None, None))
        out, in_ = weight.shape
        room = weight.untyped_storage().nbytes() // weight.itemsize - weight.storage_offset()
        if weight.dtype not in DTYPES or not out or not in_ or (weight.dtype == torch.bfloat16 and in_ % 2):
            raise ValueError(f"weight: {list(weight.shape)} of {weight.dtype} cannot be packed")
        if room < -(-out // PANEL) * PANEL * in_:
            raise ValueError(f"weight: its memory does not hold {out} rows rounded up to a multiple of {PANEL}")
        if bias is not None:
            check_shape("bias", bias, weight.dtype, (out,))
        self.library.blora_pack(weight.data_ptr(), out, in_, DTYPES[weight.dtype])
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
        """Computes y = epilogue(x W^T + the change of the step's adapters + bias), rounded once.

        x: [num_tokens, in].
        y: [num_tokens, out] for STORE and ADD; [num_tokens, out / 2] for SILU_MUL, where out is a multiple of 32;
            [num_tokens, out or more] float32 for STORE_FLOAT, which leaves further columns as they are.
        lora: the step's adapters, or None.
        """
        epilogue = Epilogue(epilogue)
        layer = linear.layer
        num_tokens, dtype = x.shape[0], linear.weight.dtype
        width = layer.out // 2 if epilogue is Epilogue.SILU_MUL else layer.out
        if epilogue is Epilogue.SILU_MUL and layer.out % (2 * PANEL):
            raise ValueError(f"SILU_MUL: gate and up of together {layer.out} outputs are not whole panels of {PANEL}")
        check_shape("x", x, dtype, (None, layer.in_))
        if epilogue is Epilogue.STORE_FLOAT:
            _check_logits(y, num_tokens, width)
        else:
            check_shape("y", y, dtype, (num_tokens, width))
        address = _lora_address(lora, layer, num_tokens)
        self.library.blora_linear(byref(layer), x.data_ptr(), y.data_ptr(), num_tokens, y.shape[1], epilogue, address)

    def unpack_rows(self, linear: PackedLinear, ids: Tensor, y: Tensor) -> None:
        """Copies rows of a packed weight: y[i] = row ids[i]. ids: [n] int64, y: [n, in]."""
        layer = linear.layer
        check_shape("ids", ids, torch.int64, (None,))
        check_shape("y", y, linear.weight.dtype, (len(ids), layer.in_))
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < layer.out:
            raise ValueError(f"ids: at least one is not a row of the weight, which has {layer.out}")
        self.library.blora_unpack_rows(layer.weight, layer.in_, layer.dtype, ids.data_ptr(), len(ids), y.data_ptr())

    def embed(self, site: int, ids: Tensor, y: Tensor, lora: CpuLoRAMetadata) -> None:
        """Applies the step's adapters to the embeddings y. ids: [n] int64, y: [n, hidden]."""
        check_shape("ids", ids, torch.int64, (None,))
        check_shape("y", y, lora.dtype, (len(ids), None))
        layer = LinearLayer(None, None, y.shape[1], lora.num_inputs(site), site, dtype_code("lora", lora.dtype))
        if any(adapter.shapes.get(site, (0, y.shape[1]))[1] != y.shape[1] for adapter in lora.adapters):
            raise ValueError(f"y: an adapter's embeddings are not {y.shape[1]} wide")
        num_ids = max(layer.in_, lora.vocab_size, 1)
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < num_ids:
            raise ValueError(f"ids: at least one is not a token of a vocabulary of {num_ids}")
        address = _lora_address(lora, layer, len(ids))
        self.library.blora_embed(address, site, ids.data_ptr(), y.shape[1], layer.dtype, y.data_ptr())

    def replace_logits(self, head: PackedLinear, x: Tensor, y: Tensor, lora: CpuLoRAMetadata) -> None:
        """Writes the logits of the token rows that the step's adapters have instead of the head's, or beyond them.

        x: [n, in].
        y: [n, out or more] float32, wide enough for the adapters' vocabularies.
        """
        layer = head.layer
        check_shape("x", x, head.weight.dtype, (None, layer.in_))
        _check_logits(y, len(x), max(layer.out, lora.vocab_size))
        address = _lora_address(lora, layer, len(x))
        self.library.blora_replace_logits(
            address, layer.site, x.data_ptr(), layer.in_, y.shape[1], layer.dtype, y.data_ptr()
        )

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, y: Tensor) -> None:
        """Computes y = x / sqrt(mean(x^2) + eps) * weight. x, y: [n, width], weight: [width]. y may be x."""
        check_shape("x", x, weight.dtype, (None, len(weight)))
        check_shape("y", y, weight.dtype, tuple(x.shape))
        check_shape("weight", weight, x.dtype, (x.shape[1],))
        self.library.blora_rms_norm(
            x.data_ptr(), weight.data_ptr(), *x.shape, eps, dtype_code("x", x.dtype), y.data_ptr()
        )

    def silu_mul(self, x: Tensor, y: Tensor) -> None:
        """Computes y = silu(first half of x) * second half. x: [n, 2 * width], y: [n, width]."""
        check_shape("y", y, y.dtype, (None, None))
        check_shape("x", x, y.dtype, (len(y), 2 * y.shape[1]))
        self.library.blora_silu_mul(x.data_ptr(), *y.shape, dtype_code("y", y.dtype), y.data_ptr())

    def attention(self, layer: AttentionLayer, plan: AttentionPlan, qkv: Tensor, y: Tensor) -> None:
        """Norms and rotates q and k, writes k and v into their pages, and computes the attention.

        layer, plan: made by `CpuAttention`.
        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim].
        y: [num_tokens, num_heads * head_dim].
        """
        dtype = torch.float32 if layer.dtype == 0 else torch.bfloat16
        width = layer.num_heads * layer.head_dim
        check_shape("qkv", qkv, dtype, (plan.num_tokens, width + 2 * layer.num_kv_heads * layer.head_dim))
        check_shape("y", y, dtype, (plan.num_tokens, width))
        self.library.blora_attention(byref(layer), byref(plan), qkv.data_ptr(), y.data_ptr())

    def decoder(
        self,
        layers: ctypes.Array[DecoderLayer],
        activations: Sequence[Tensor | None],
        plan: AttentionPlan,
        lora: CpuLoRAMetadata | None,
    ) -> None:
        """Runs all layers and changes the first activation, `hidden`.

        layers: all of the same shapes.
        activations: hidden, normed, qkv, attended, gate_up and gated, as the structure names them; gate_up is None
            where gate and up are whole panels.
        lora: the step's adapters, or None.
        """
        at, address = self.decoder_arguments(layers, activations, plan, lora)
        seconds = None if self.seconds is None else self.seconds.data_ptr()
        self.library.blora_decoder(layers, len(layers), byref(at), byref(plan), address, seconds)

    def decoder_arguments(
        self,
        layers: ctypes.Array[DecoderLayer],
        activations: Sequence[Tensor | None],
        plan: AttentionPlan,
        lora: CpuLoRAMetadata | None,
    ) -> tuple[Activations, int | None]:
        """Checks the arguments of `decoder`; returns the activations and the address of the adapters' plan."""
        first = layers[0]
        heads = first.attention.num_heads * first.attention.head_dim
        widths = (first.qkv.in_, first.qkv.in_, first.qkv.out, heads, first.gate_up.out, first.down.in_)
        dtype = torch.float32 if first.qkv.dtype == 0 else torch.bfloat16
        if (activations[4] is None) != (first.down.in_ % PANEL == 0):
            raise ValueError("gate_up: has to be None exactly where gate and up are whole panels")
        for name, tensor, width in zip(ACTIVATIONS, activations, widths, strict=True):
            if tensor is not None:
                check_shape(name, tensor, dtype, (plan.num_tokens, width))
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in activations]
        address = _lora_address(lora, layers[len(layers) - 1].down, plan.num_tokens)
        return Activations(*addresses, plan.num_tokens, 0), address

    def scan(self, logits: Tensor, vocab_sizes: Sequence[int] | None = None) -> tuple[Tensor, Tensor]:
        """Finds the best token of each row, the first one of equals, and whether the row is finite.

        logits: [n, vocab] float32.
        vocab_sizes: [n] the number of logits that belong to each row; None: all.
        Returns the tokens, [n] int64, and [n] bool.
        """
        sizes = _sizes_of_rows(logits, vocab_sizes)
        num_rows, width = logits.shape
        ids = torch.empty(num_rows, dtype=torch.int64)
        is_finite = torch.empty(num_rows, dtype=torch.bool)
        self.library.blora_scan(logits.data_ptr(), num_rows, width, sizes, ids.data_ptr(), is_finite.data_ptr())
        return ids, is_finite

    def mask(
        self, logits: Tensor, masks: Sequence[Mask | None], ids: Tensor, vocab_sizes: Sequence[int] | None = None
    ) -> None:
        """Gives -infinity to the logits that a mask leaves out, and finds the best token that is left.

        logits: [n, vocab] float32, changed in place.
        masks: [n] of [ceil(vocab / 32)] uint32 or more, a bit for each token, the lowest first; None: the row stays.
        ids: [n] int64, changed for the rows with masks: the best token, or the row's size of the vocabulary if none is
        left.
        vocab_sizes: [n] the number of logits that belong to each row; None: all.
        """
        sizes = _sizes_of_rows(logits, vocab_sizes)
        check_shape("ids", ids, torch.int64, (len(logits),))
        num_rows, width = logits.shape
        addresses = (c_uint64 * num_rows)(*(_address_of_mask(mask, width) for mask in masks))
        self.library.blora_mask(logits.data_ptr(), num_rows, width, sizes, addresses, ids.data_ptr())

    def draw(self, logits: Tensor, temperature: float, key: int) -> int:
        """Draws a token from softmax(logits / temperature).

        logits: [vocab] float32 without NaN.
        temperature: above 0.
        key: of (seed, sample, position).
        """
        check_shape("logits", logits, torch.float32, (None,))
        if not len(logits) or not 0 < temperature < math.inf:
            raise ValueError(f"logits: no token can be drawn from {len(logits)} at temperature {temperature}")
        return int(self.library.blora_draw(logits.data_ptr(), len(logits), temperature, key))


def _lora_address(lora: CpuLoRAMetadata | None, layer: LinearLayer, num_tokens: int) -> int | None:
    """The address of the plan, or None. Raises ValueError for a plan that does not fit the layer.

    layer: the one with the highest site of the call.
    """
    if lora is None:
        return None
    if not isinstance(lora, CpuLoRAMetadata):
        raise TypeError(f"lora: {type(lora).__name__} is not a plan of CpuLoRA")
    if lora.num_tokens > num_tokens or layer.site >= lora.num_sites or DTYPES.get(lora.dtype) != layer.dtype:
        raise ValueError(
            f"lora: a plan of {lora.num_tokens} tokens and {lora.num_sites} sites in {lora.dtype} does not fit a call"
            f" of {num_tokens} tokens at site {layer.site}"
        )
    for adapter in lora.adapters:
        num_inputs, num_outputs = adapter.shapes.get(layer.site, (layer.in_, 0))
        if num_inputs != layer.in_ or num_outputs > layer.out:
            raise ValueError(
                f"lora: an adapter has {num_inputs} inputs and {num_outputs} outputs at site {layer.site}, the layer"
                f" {layer.in_} and {layer.out}"
            )
    return lora.address


def dtype_code(name: str, dtype: torch.dtype) -> int:
    """The dtype's number in types.h. Raises ValueError for a dtype without kernels."""
    if dtype not in DTYPES:
        raise ValueError(f"{name}: there are no kernels for {dtype}, only for float32 and bfloat16")
    return DTYPES[dtype]


def _check_logits(y: Tensor, num_rows: int, width: int) -> None:
    check_shape("y", y, torch.float32, (num_rows, None))
    if y.shape[1] < width:
        raise ValueError(f"y: {y.shape[1]} columns do not hold {width} logits")


def check_shape(name: str, tensor: Tensor, dtype: torch.dtype, shape: Sequence[int | None]) -> None:
    """Raises ValueError unless the tensor is contiguous, on the CPU, and of the dtype and shape. None: any size."""
    is_fitting = tensor.dim() == len(shape) and all(
        wanted is None or size == wanted for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not is_fitting or tensor.dtype is not dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(
            f"{name}: {list(tensor.shape)} of {tensor.dtype} is not {list(shape)} of {dtype}, contiguous and on the CPU"
        )


def _sizes_of_rows(logits: Tensor, vocab_sizes: Sequence[int] | None) -> Any:
    """Checks logits, [n, vocab] float32, and the sizes of their rows; returns these as an array, None for None."""
    check_shape("logits", logits, torch.float32, (None, None))
    num_rows, width = logits.shape
    if not width:
        raise ValueError("logits: the vocabulary is empty")
    if vocab_sizes is None:
        return None
    if len(vocab_sizes) != num_rows or not all(1 <= size <= width for size in vocab_sizes):
        raise ValueError(f"logits: {num_rows} rows of {width} do not hold vocabularies of {list(vocab_sizes)}")
    return (c_int32 * num_rows)(*vocab_sizes)


def _address_of_mask(mask: Mask | None, width: int) -> int:
    if mask is None:
        return 0
    if mask.dtype != np.uint32 or mask.ndim != 1 or not mask.flags.c_contiguous or len(mask) * 32 < width:
        raise ValueError(f"mask: {mask.dtype} {mask.shape} is not uint32 with a bit for each of {width} tokens")
    return int(mask.ctypes.data)


@cache
def load_kernels(instruction_set: str | None = None) -> Kernels | None:
    """The build for an instruction set; without one, the best build that may run here. None: no build is installed.

    Raises ValueError for an instruction set that this machine does not run, and PermissionError where the operating
    system withholds the registers of the instruction set.
    """
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
