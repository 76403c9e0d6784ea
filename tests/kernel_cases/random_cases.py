"""Random cases of every kernel. Each compares results with a definition, and bits with every row's own call.

The seed alone determines a case: the same seed gives the same case again.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
import torch.nn.functional as F
from compute_threads import compute_threads
from torch import Tensor

from blora.adapters.lora import Segment
from blora.engine.kernels.library import PANEL, Epilogue, Kernels
from blora.engine.model.ops import rms_norm
from blora.engine.step.sampler import TORCH_PICKER

from .attention_world import Shape, World
from .decoder_world import Decoders, make_config
from .lora_world import Adapter, LoRAWorld, Site, Uses, segments_of, uses_of
from .token_rows_world import TokenRowsAdapter, TokenRowsWorld

DTYPES = (torch.float32, torch.bfloat16)
SCALES = (1.0, 1.0, 0.5, -1.5, 0.0)
RELATIVE = {torch.float32: 1e-5, torch.bfloat16: 2**-6}  # a unit in the last place at each of two roundings
# The errors of sums and of stored values. q and k are rounded where the definition rounds them, but a norm is summed in
# another order: sometimes an element falls to the other side of a tie, which moves its scores by a unit in the last
# place.
ATTENTION_ERROR = {torch.float32: {"atol": 2e-5, "rtol": 0}, torch.bfloat16: {"atol": 2**-8, "rtol": 2**-8}}
NORMED_ERROR = {**ATTENTION_ERROR, torch.bfloat16: {"atol": 2**-5, "rtol": 2**-8}}


class Case(Protocol):
    """One random case."""

    def check(self, kernels: Kernels) -> None:
        """Raises AssertionError."""


def random_case(seed: int) -> Case:
    rng = random.Random(seed)
    return rng.choice(KINDS)(rng, seed)


def check_case(seed: int, kernels: Kernels) -> None:
    """Checks a case. Raises AssertionError that names it. One thread computes references and solo calls."""
    case = random_case(seed)
    try:
        with compute_threads(kernels, 1):
            case.check(kernels)
    except AssertionError as error:
        raise AssertionError(f"seed {seed} on {kernels.instruction_set}: {case}\n{error}") from error


def _size(rng: random.Random, most: int) -> int:
    """A random size, mostly small, sometimes up to `most`."""
    return rng.randint(1, rng.choice([1, 4, 16, most, most]))


@dataclass(frozen=True)
class LinearCase:
    """A linear layer with the changes of adapters."""

    seed: int
    num_threads: int
    dtype: torch.dtype
    site: Site
    epilogue: Epilogue
    adapters: dict[str, Adapter]
    runs: list[tuple[int, Uses]]
    page_bytes: int

    def check(self, kernels: Kernels) -> None:
        world = LoRAWorld(kernels, self.dtype, self.site, self.adapters, self.page_bytes, self.seed)
        uses = uses_of(self.runs)
        x, before = world.rows(len(uses)), world.before(len(uses), self.epilogue)
        segments = segments_of(self.runs)
        with compute_threads(kernels, self.num_threads):
            together = world.run(x, self.epilogue, segments, before)
        world.assert_near(x, self.epilogue, segments, before, together)
        assert torch.equal(together, world.solo(x, self.epilogue, uses, before)), "bits differ from the solo calls"


def _linear_case(rng: random.Random, seed: int) -> LinearCase:
    dtype, epilogue = rng.choice(DTYPES), rng.choice(list(Epilogue))
    per_unit = 4 // dtype.itemsize
    if epilogue is Epilogue.SILU_MUL:
        half = PANEL * _size(rng, 12)
        slices = [(0, half), (half, half)]
    else:
        slices = _slices(rng)
    site = Site(per_unit * _size(rng, 150), sum(slices[-1]), tuple(slices), rng.random() < 0.5)
    adapters = {name: _adapter(rng, len(slices)) for name in "abcdef"[: rng.randint(1, 6)]}
    return LinearCase(
        seed=seed,
        num_threads=rng.randint(1, 3),
        dtype=dtype,
        site=site,
        epilogue=epilogue,
        adapters=adapters,
        runs=_runs(rng, list(adapters)),
        page_bytes=rng.choice([1024, 1088, 1536, 4096, 1 << 16]),
    )


def _slices(rng: random.Random) -> list[tuple[int, int]]:
    """Random slices, side by side: of panels, of heads, or of any width, sometimes wider than a patch."""
    slices, column = [], 0
    unit = rng.choice([PANEL, 8, 1])
    for _ in range(rng.randint(1, 4)):
        width = unit * max(_size(rng, 600 if rng.random() < 0.1 else 60) // unit, 1)
        slices.append((column, width))
        column += width
    return slices


def _adapter(rng: random.Random, num_slices: int) -> Adapter:
    ranks = tuple(rng.choice([0, rng.randint(1, 70), rng.choice([4, 8, 16, 16, 32])]) for _ in range(num_slices))
    return Adapter(ranks, rng.choice([0.25, 1.0, 2.0]))


def _runs(rng: random.Random, names: Sequence[str]) -> list[tuple[int, Uses]]:
    """Random runs: uniform, distinct, skewed or identical, with or without base rows between."""
    popularity = rng.choice(["uniform", "distinct", "skewed", "identical"])
    base_share = rng.choice([0.0, 0.2, 0.9])
    runs: list[tuple[int, Uses]] = []
    for _ in range(1 if popularity == "identical" else _size(rng, 12)):
        size = {"distinct": 1, "skewed": rng.choice([1, 1, 2, 40])}.get(popularity, _size(rng, 20))
        runs.append((size, () if rng.random() < base_share else _uses(rng, names)))
    return runs


def _uses(rng: random.Random, names: Sequence[str]) -> Uses:
    chosen = [rng.choice(names) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    return tuple((name, rng.choice(SCALES)) for name in chosen)


@dataclass(frozen=True)
class AttentionCase:
    """Sequences computed together, in chunks."""

    seed: int
    num_threads: int
    dtype: torch.dtype
    shape: Shape
    lengths: list[int]
    chunks: list[int]
    gap: int

    def check(self, kernels: Kernels) -> None:
        world = World(kernels, self.shape, self.dtype, self.lengths, self.seed, self.gap)
        with compute_threads(kernels, self.num_threads):
            together = world.run(self.chunks)
        error = (NORMED_ERROR if self.shape.has_norm else ATTENTION_ERROR)[self.dtype]
        for row, y in enumerate(together):
            torch.testing.assert_close(y.double(), world.expected(row), **error)
            world.arena.pages.fill_(0xFF)
            assert torch.equal(y, world.step({row: (0, len(y))})[row]), f"bits of row {row} differ from its solo call"


def _attention_case(rng: random.Random, seed: int) -> AttentionCase:
    kv_heads = rng.choice([1, 1, 2, 3])
    most = rng.choice([20, 20, 80, 300])
    shape = Shape(
        heads=kv_heads * rng.choice([1, 2, 3, 4, 7, 13, 30]),
        kv_heads=kv_heads,
        dim=2 * rng.choice([1, 3, 4, 8, 8, 12, 17, 32, 40]),
        block_size=rng.choice([1, 2, 3, 4, 7, 8, 13, 16, 16, 32, 48]),
        window=rng.choice([None, None, 1, rng.randint(2, 20), rng.randint(20, 200)]),
        soft_cap=rng.choice([None, None, None, rng.uniform(1.0, 40.0)]),
        has_norm=rng.random() < 0.3,
    )
    return AttentionCase(
        seed=seed,
        num_threads=rng.randint(1, 3),
        dtype=rng.choice(DTYPES),
        shape=shape,
        lengths=[_size(rng, most) for _ in range(rng.choice([1, 2, 3, 5]))],
        chunks=[_size(rng, most) for _ in range(rng.randint(0, 4))] + [rng.choice([most, most, 7])],
        gap=rng.choice([0, 64]),
    )


@dataclass(frozen=True)
class RowsCase:
    """A kernel that computes each row by itself."""

    seed: int
    num_threads: int
    dtype: torch.dtype
    num_rows: int
    width: int

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(self.seed)).to(self.dtype)

    def assert_same_bits(self, together: Tensor, run: Callable[[int, Tensor], None]) -> None:
        """Compares every row with its own call. run: computes a row into the tensor that it is given."""
        for row in range(self.num_rows):
            alone = torch.full_like(together[row : row + 1], torch.nan)
            run(row, alone)
            assert torch.equal(alone[0], together[row]), f"bits of row {row} differ from its solo call"

    def assert_near(self, y: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(y.double(), expected.double(), rtol=RELATIVE[self.dtype], atol=1e-6)


@dataclass(frozen=True)
class NormCase(RowsCase):
    def check(self, kernels: Kernels) -> None:
        x, weight = self.normal(self.num_rows, self.width), self.normal(self.width)
        y = torch.full_like(x, torch.nan)
        with compute_threads(kernels, self.num_threads):
            kernels.rms_norm(x, weight, 1e-5, y)
        self.assert_near(y, rms_norm(x, weight, 1e-5))
        self.assert_same_bits(y, lambda row, alone: kernels.rms_norm(x[row : row + 1].clone(), weight, 1e-5, alone))
        kernels.rms_norm(x, weight, 1e-5, x)
        assert torch.equal(x, y), "in place"


@dataclass(frozen=True)
class SiluCase(RowsCase):
    def check(self, kernels: Kernels) -> None:
        x = 8 * self.normal(self.num_rows, 2 * self.width)
        y = torch.full((self.num_rows, self.width), torch.nan, dtype=self.dtype)
        with compute_threads(kernels, self.num_threads):
            kernels.silu_mul(x, y)
        gate, up = x.double().chunk(2, dim=1)
        self.assert_near(y, F.silu(gate) * up)
        self.assert_same_bits(y, lambda row, alone: kernels.silu_mul(x[row : row + 1].clone(), alone))


@dataclass(frozen=True)
class LookupCase(RowsCase):
    """Rows of a packed matrix with `width` inputs (twice as many in bfloat16)."""

    def check(self, kernels: Kernels) -> None:
        width = self.width * 4 // self.dtype.itemsize
        weight = self.normal(-(-self.num_rows // PANEL) * PANEL, width)[: self.num_rows]
        rows = weight.clone()
        linear = kernels.pack_linear(weight)
        ids = torch.randint(self.num_rows, (self.num_rows + 3,), generator=torch.Generator().manual_seed(self.seed))
        y = torch.full((len(ids), width), torch.nan, dtype=self.dtype)
        with compute_threads(kernels, self.num_threads):
            kernels.unpack_rows(linear, ids, y)
        assert torch.equal(y, rows[ids])


def _rows_case(kind: type[RowsCase]) -> Callable[[random.Random, int], Case]:
    def draw(rng: random.Random, seed: int) -> Case:
        values = seed, rng.randint(1, 3), rng.choice(DTYPES), _size(rng, 80), _size(rng, 1200)
        case: Case = kind(**dict(zip((field.name for field in fields(kind)), values, strict=True)))  # type: ignore
        return case

    return draw


@dataclass(frozen=True)
class SamplingCase(RowsCase):
    """The best token and a draw of each row, from the first of its logits."""

    def check(self, kernels: Kernels) -> None:
        rng = random.Random(self.seed)
        logits = rng.choice([0.0, 0.1, 3.0, 1e30]) * self.normal(self.num_rows, self.width).float()
        logits.view(-1)[:: rng.randint(3, 50)] = rng.choice([0.0, -torch.inf])
        sizes = None if rng.random() < 0.5 else [rng.randint(1, self.width) for _ in range(self.num_rows)]
        rows = [row[:size] for row, size in zip(logits, sizes or [self.width] * self.num_rows, strict=True)]
        with compute_threads(kernels, self.num_threads):
            ids, is_finite = kernels.scan(logits, sizes)
        assert ids.tolist() == [int(row.argmax()) for row in rows]
        assert is_finite.tolist() == [bool(row.isfinite().all()) for row in rows]
        temperature, key = rng.choice([1e-3, 0.7, 1.0, 5.0]), rng.getrandbits(64)
        for row in rows:
            if row.max() > -torch.inf:
                assert kernels.draw(row, temperature, key) == TORCH_PICKER.draw(row, temperature, key)


@dataclass(frozen=True)
class TokenRowsCase:
    """Embeddings and logits of adapters that change the model's matrices, or have token rows beyond their ends."""

    seed: int
    num_threads: int
    dtype: torch.dtype
    vocab: int
    hidden: int
    adapters: dict[str, TokenRowsAdapter]
    runs: list[tuple[int, Uses]]
    page_bytes: int

    def check(self, kernels: Kernels) -> None:
        world = TokenRowsWorld(kernels, self.dtype, self.vocab, self.hidden, self.adapters, self.page_bytes, self.seed)
        uses, segments = uses_of(self.runs), segments_of(self.runs)
        ids = self._ids(uses)
        base, x = world.rows(len(uses)), world.rows(len(uses))
        with compute_threads(kernels, self.num_threads):
            embedded, logits = world.embed(ids, base, segments), world.logits(x, segments)
        world.check_embed(ids, base, segments, embedded)
        world.check_logits(x, segments, logits)
        for token, own in enumerate(uses):
            row, alone = slice(token, token + 1), [Segment(0, 1, own)] if own else []
            if own:
                assert torch.equal(world.embed(ids[row], base[row], alone), embedded[row]), f"bits of token {token}"
            expected = world.logits(x[row].clone(), alone)
            together = logits[row, : expected.shape[1]]
            is_same = (together == expected) | (together.isnan() & expected.isnan())  # NaN: nothing is written there
            assert is_same.all(), f"bits of the logits of token {token} differ from its solo call"

    def _ids(self, uses: Sequence[Uses]) -> Tensor:
        rng = random.Random(self.seed)
        own = [tuple(token for name, _ in use for token in self.adapters[name].ids) for use in uses]
        return torch.tensor(
            [rng.choice(ids) if ids and rng.random() < 0.5 else rng.randrange(self.vocab) for ids in own]
        )


def _token_rows_case(rng: random.Random, seed: int) -> TokenRowsCase:
    dtype, vocab = rng.choice(DTYPES), _size(rng, 300)
    adapters = {name: _token_rows_adapter(rng, vocab) for name in "abcd"[: rng.randint(1, 4)]}
    runs = [(size, uses[:1]) for size, uses in _runs(rng, list(adapters))]
    return TokenRowsCase(
        seed=seed,
        num_threads=rng.randint(1, 3),
        dtype=dtype,
        vocab=vocab,
        hidden=4 // dtype.itemsize * _size(rng, 120),
        adapters=adapters,
        runs=[*runs, (1, (("a", 1.0),))],
        page_bytes=rng.choice([1024, 1088, 4096]),
    )


def _token_rows_adapter(rng: random.Random, vocab: int) -> TokenRowsAdapter:
    """A random adapter with a product, token rows, or both; rows of all tokens, of some, or of added ones."""
    rank = rng.choice([0, rng.randint(1, 40)])
    num_rows = vocab + rng.choice([0, rng.randint(1, 20), -rng.randrange(vocab)])
    some = sorted(rng.sample(range(vocab + 20), rng.randint(1, 20)))
    behind = range(vocab, vocab + rng.randint(1, 20))
    row_ids = rng.choice([None if rank else (), (), tuple(some), tuple(behind)])
    return TokenRowsAdapter(rank, row_ids, num_rows, rank > 0 and rng.random() < 0.3, rng.choice([0.25, 1.0, 2.0]))


@dataclass(frozen=True)
class DecoderCase:
    """All layers in one call, with adapters on every module."""

    seed: int
    num_threads: int
    dtype: torch.dtype
    fields: dict[str, object]
    lengths: list[int]
    segments: list[Segment]

    def check(self, kernels: Kernels) -> None:
        decoders = Decoders(kernels, make_config(**self.fields), self.dtype, self.lengths)
        expected = decoders.plain_logits(self.segments)
        with compute_threads(kernels, self.num_threads):
            together = decoders.native_logits(self.segments)
        allowed = (
            0.1 if self.dtype == torch.bfloat16 else 1e-4
        )  # relative to the norm of all: bfloat16 rounds at many places
        error = (together - expected).norm() / expected.norm()
        assert error < allowed, error
        assert torch.equal(together, decoders.native_logits(self.segments)), "bits differ from those of one thread"


def _decoder_case(rng: random.Random, seed: int) -> DecoderCase:
    lengths = [_size(rng, 30) for _ in range(rng.randint(1, 4))]
    kv_heads = rng.choice([1, 2])
    dtype = rng.choice(DTYPES)
    cuts = sorted(rng.sample(range(sum(lengths) + 1), min(4, sum(lengths) + 1)))
    fields: dict[str, object] = {name: rng.random() < 0.5 for name in ("qkv_bias", "o_bias", "mlp_bias", "qk_norm")}
    fields |= {
        # A norm over few values that nearly cancel magnifies the rounding of bfloat16: float32 tests narrow models.
        "hidden_size": 2 * max(_size(rng, 30), 8 if dtype == torch.bfloat16 else 1),
        "intermediate_size": 2 * _size(rng, 60),
        "num_kv_heads": kv_heads,
        "num_heads": kv_heads * rng.randint(1, 3),
        "head_dim": 2 * rng.randint(1, 10),
        "tie_word_embeddings": rng.random() < 0.5,
        "sliding_windows": (None, rng.choice([None, rng.randint(1, 20)])),
    }
    return DecoderCase(
        seed=seed,
        num_threads=rng.randint(1, 3),
        dtype=dtype,
        fields=fields,
        lengths=lengths,
        segments=[
            Segment(start, end, (("a", rng.choice(SCALES)),)) for start, end in zip(cuts[::2], cuts[1::2], strict=False)
        ],
    )


# Kinds with more to go wrong are drawn more often.
KINDS = [
    *[_linear_case] * 5,
    *[_attention_case] * 4,
    *[_token_rows_case] * 2,
    _decoder_case,
    *(_rows_case(kind) for kind in (NormCase, SiluCase, LookupCase, SamplingCase)),
]
