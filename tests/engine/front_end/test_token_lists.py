"""The long lists of a request: their entries are checked and packed, in pieces that take little of the loop."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from blora.engine.errors import InvalidRequest
from blora.engine.facts import Facts
from blora.engine.front_end.token_lists import BIASES_OF_PIECE, IDS_OF_PIECE, TokenLists, check_edits
from blora.engine.ipc.turns import SHARE
from blora.scheduler import LogitEdits, SamplingParams

VOCAB = 1 << 17
FACTS = Facts(vocab_size=VOCAB, max_model_len=64, block_size=4, num_pages=12)


def lists(allowed: Sequence[int] | None = None, biases: Mapping[int, float] | None = None) -> TokenLists:
    return TokenLists.of(SamplingParams(allowed_token_ids=allowed, logit_bias=biases))


def test_entries_keep_their_order_and_their_numbers() -> None:
    edits = lists([7, 0, VOCAB - 1], {5: -0.5, 3: 100.0}).pack_at_once(FACTS)
    assert array("q", edits.allowed or b"").tolist() == [7, 0, VOCAB - 1]
    assert array("q", edits.biased).tolist() == [5, 3]
    assert array("f", edits.biases).tolist() == [-0.5, 100.0]
    assert edits.num_tokens == 5


def test_nothing_asked_is_nothing_changed() -> None:
    assert lists().pack_at_once(FACTS) == lists(biases={}).pack_at_once(FACTS) == LogitEdits()
    assert list(lists().pack(FACTS)) == []


@pytest.mark.parametrize("allowed", [(7, 8), range(7, 9), b"\x07\x08", [np.int64(7), np.uint8(8)]], ids=repr)
def test_any_sequence_of_integers_is_a_list(allowed: Any) -> None:
    assert lists(allowed).pack_at_once(FACTS) == lists([7, 8]).pack_at_once(FACTS)


def test_a_whole_vocabulary_is_packed_in_pieces_that_each_fit_a_turn() -> None:
    ids = list(range(VOCAB))[::-1]
    whole = lists(ids, dict.fromkeys(ids, 2.0))
    costs = list(whole.pack(FACTS))
    assert len(costs) > VOCAB // IDS_OF_PIECE + VOCAB // BIASES_OF_PIECE
    assert max(costs) < SHARE
    edits = whole.pack_at_once(FACTS)
    assert array("q", edits.allowed or b"").tolist() == array("q", edits.biased).tolist() == ids
    assert array("f", edits.biases).tolist() == [2.0] * VOCAB


@pytest.mark.parametrize("place", [0, IDS_OF_PIECE - 1, IDS_OF_PIECE, VOCAB - 1])
@pytest.mark.parametrize("wrong", [-1, VOCAB, 1 << 70, "7", 7.0, True, None], ids=repr)
def test_one_wrong_entry_of_many_is_found(place: int, wrong: Any) -> None:
    ids: list[Any] = list(range(VOCAB))
    ids[place] = wrong
    with pytest.raises(InvalidRequest, match="^allowed_token_ids: "):
        lists(ids).pack_at_once(FACTS)
    with pytest.raises(InvalidRequest, match="^logit_bias: "):
        lists(None, dict.fromkeys([*range(8, 1 << 13), wrong], 1.0)).pack_at_once(FACTS)


def test_packed_lists_are_checked_against_another_vocabulary() -> None:
    for edits in (lists([3, 9]), lists(None, {9: 1.0, 3: 1.0})):
        packed = edits.pack_at_once(FACTS)
        check_edits(packed, replace(FACTS, vocab_size=10))
        with pytest.raises(InvalidRequest, match="9 is not a token id from 0 to 8"):
            check_edits(packed, replace(FACTS, vocab_size=9))
    check_edits(LogitEdits(), FACTS)
