"""Compares tokens of computations that round differently."""

from blora.engine import CompletionOutput

NEAR_TIE = 1e-4  # a difference counts only if the two best scores are further apart


def first_difference(one: list[int], other: list[int]) -> int | None:
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return None if len(one) == len(other) else min(len(one), len(other))


def assert_same_tokens(expected: CompletionOutput, actual: CompletionOutput, what: object = "") -> None:
    """Asserts equal tokens, but for near ties. `expected` must be greedy with logprobs >= 2, which show the near
    ties."""
    index = first_difference(expected.token_ids, actual.token_ids)
    if index is None:
        return
    assert expected.logprobs is not None and index < len(expected.logprobs), (what, expected, actual)
    best = sorted((entry.logprob for entry in expected.logprobs[index].values()), reverse=True)
    gap = best[0] - best[1]
    assert gap <= NEAR_TIE, f"{what}: token {index} differs, and the two best are {gap:.6f} apart"
