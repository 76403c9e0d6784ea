"""All layers in one native call against the plain decoder, on every build; and calls that are refused."""

from collections.abc import Sequence

import pytest
import torch
from kernel_cases.decoder_world import LENGTHS, Decoders, make_config

from blora.adapters.lora import Segment
from blora.engine.kernels.library import Kernels

LORA = (
    Segment(0, 4, (("a", 1.0),)),
    Segment(9, 40, (("a", -0.5),)),
)  # segments across rows, with tokens without adapters between

CONFIGS = {
    "llama": {},
    "odd gates": {"intermediate_size": 72},  # gate and up are not whole panels
    "biases, norms": {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "qk_norm": True},
    "tied, window": {"tie_word_embeddings": True, "sliding_windows": (None, 7)},
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("segments", [(), LORA], ids=["base", "adapters"])
def test_equals_the_plain_decoder(
    kernels: Kernels, dtype: torch.dtype, num_threads: int, name: str, segments: Sequence[Segment]
) -> None:
    assert kernels.num_threads == num_threads
    decoders = Decoders(kernels, make_config(**CONFIGS[name]), dtype)
    expected = decoders.plain_logits(segments)
    allowed = 0.1 if dtype == torch.bfloat16 else 1e-4  # relative to the norm of all: bfloat16 rounds at many places
    error = (decoders.native_logits(segments) - expected).norm() / expected.norm()
    assert error < allowed, error


def test_base_rows_have_the_same_bits_beside_adapters(kernels: Kernels, dtype: torch.dtype, num_threads: int) -> None:
    """An adapter changes a part of the first row and no token of the second; in the third row, the tokens after a
    changed token change too."""
    assert kernels.num_threads == num_threads
    decoders = Decoders(kernels, make_config(), dtype)
    base, mixed = decoders.native_logits(()), decoders.native_logits(LORA)
    is_same = (base == mixed).all(dim=1)
    assert is_same.nonzero().flatten().tolist() == [5, 6, 7, 8]


def test_steps_that_do_not_belong_together_are_refused(kernels: Kernels) -> None:
    decoders = Decoders(kernels, make_config(), torch.float32)
    attention, _ = decoders.native_planners
    with pytest.raises(ValueError, match="^hidden: "):
        decoders.native.forward(decoders.batch(decoders.native_planners, (), sum(LENGTHS) - 1))
    with pytest.raises(TypeError, match="another backend"):
        decoders.native.forward(decoders.batch(decoders.plain_planners, ()))
    with pytest.raises(TypeError, match="another backend"):
        decoders.native.forward(decoders.batch((attention, decoders.plain_planners[1]), LORA))
    with pytest.raises(ValueError, match="^lora: "):
        decoders.native.forward(decoders.batch(decoders.native_planners, [Segment(0, 47, (("a", 1.0),))]))
