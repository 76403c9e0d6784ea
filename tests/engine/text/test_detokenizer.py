"""Detokenizer: the shown text never holds a stop string, whole or in part, and it only grows."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from blora.engine.text.detokenizer import Detokenizer
from blora.engine.text.tokenizer import Tokenizer
from blora.scheduler import SamplingParams

PIECES = ["ab", "abc", "bc", "aa", "aba", "ba", "stop", "st", "op", "</s>", "\n\n", " a", "é漢"]


def make_tokenizer() -> Tokenizer:
    """Makes a tokenizer in which every byte is a token, and so are some longer pieces. No text is encoded to a piece,
    so that tests choose the split."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    (*symbols,) = (as_symbols(piece) for piece in PIECES)
    backend = tokenizers.Tokenizer(models.BPE({text: index for index, text in enumerate([*alphabet, *symbols])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>", "<end>", "<tool>", "<too"])
    return Tokenizer(backend, {"eos_token": "<eos>"}, None)


def as_symbols(text: str) -> str:
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(symbols for symbols, _ in splitter.pre_tokenize_str(text))


TOKENIZER = make_tokenizer()
FIRST_PIECE = 256
EOS = FIRST_PIECE + len(PIECES)


def ids_of(*parts: str) -> list[int]:
    """Returns the ids of parts. A part that is a piece is one token; any other part has a token for each byte."""
    ids: list[int] = []
    for part in parts:
        ids += [FIRST_PIECE + PIECES.index(part)] if part in PIECES else TOKENIZER.encode(part)
    return ids


def make(stop: str | Sequence[str] | None = None, **fields: Any) -> Detokenizer:
    return Detokenizer(TOKENIZER, [], SamplingParams(stop=stop, **fields))


def shown(detokenizer: Detokenizer, ids: Sequence[int], chunk: int = 1) -> Iterator[str]:
    """Returns the text that may be shown after each push and at the end."""
    for start in range(0, len(ids), chunk):
        detokenizer.push(ids[start : start + chunk])
        yield detokenizer.text
        if detokenizer.stop_string is not None:
            return
    detokenizer.finish()
    yield detokenizer.text


def final(detokenizer: Detokenizer, ids: Sequence[int]) -> str:
    *_, text = shown(detokenizer, ids)
    return text


# Without stop strings.


@pytest.mark.parametrize("text", ["", "plain", "é漢👍🏽", "e\u0301\u0323", "a\ufffd", "\n\n \t"])
def test_without_stop_strings_all_text_is_shown(text: str) -> None:
    assert final(make(), [0, *ids_of(text)]) == TOKENIZER.decode([0]) + text


def test_without_stop_strings_nothing_is_held_back() -> None:
    assert list(shown(make(), ids_of("st", "op"))) == ["st", "stop", "stop"]


def test_half_a_character_is_shown_only_in_the_end() -> None:
    detokenizer = make()
    detokenizer.push(ids_of("a漢")[:-1])
    assert detokenizer.text == "a"
    detokenizer.finish()
    assert detokenizer.text == "a\ufffd"


# Stop strings.


@pytest.mark.parametrize("parts", [("stop",), ("st", "op"), ("s", "t", "o", "p"), ("st", "o", "p"), ("s", "t", "op")])
def test_a_stop_string_is_cut_off_however_it_is_split(parts: tuple[str, ...]) -> None:
    detokenizer = make("stop")
    texts = list(shown(detokenizer, ids_of("x", *parts)))
    assert set(texts) == {"x"}
    assert detokenizer.stop_string == "stop"


def test_a_stop_string_is_kept_where_asked() -> None:
    detokenizer = make("stop", include_stop_str_in_output=True)
    assert list(shown(detokenizer, ids_of("x", "st", "op"))) == ["x", "x", "xstop"]


def test_what_follows_a_stop_string_in_its_token_is_cut_off() -> None:
    for keeps, text in ((False, "x"), (True, "xab")):
        assert final(make("ab", include_stop_str_in_output=keeps), ids_of("x", "abc")) == text


def test_tokens_after_a_stop_string_are_not_used() -> None:
    detokenizer = make("ab")
    assert detokenizer.push(ids_of("x", "ab", "ba", "ba")) == 2
    assert detokenizer.text == "x"


def test_all_tokens_are_used_without_a_stop_string() -> None:
    assert make("zz").push(ids_of("x", "ab", "ba")) == 3


def test_the_earliest_of_several_stop_strings_wins() -> None:
    detokenizer = make(["op", "c", "b"])
    assert final(detokenizer, ids_of("x", "abc", "stop")) == "xa"
    assert detokenizer.stop_string == "b"


@pytest.mark.parametrize("stops", [["stop", "to"], ["to", "stop"]])
def test_overlapping_stop_strings_in_one_token(stops: list[str]) -> None:
    detokenizer = make(stops)
    assert final(detokenizer, ids_of("x", "stop")) == "x"
    assert detokenizer.stop_string == "stop"


@pytest.mark.parametrize("stops", [["ab", "abc"], ["abc", "ab"]])
def test_the_shorter_of_two_that_begin_together_wins(stops: list[str]) -> None:
    for parts in (("abc",), ("a", "b", "c")):
        detokenizer = make(stops)
        assert final(detokenizer, ids_of("x", *parts)) == "x"
        assert detokenizer.stop_string == "ab"


def test_a_beginning_that_does_not_go_on_is_let_go() -> None:
    assert list(shown(make("stop"), ids_of("st", "o", "x"))) == ["", "", "stox", "stox"]


def test_a_beginning_at_the_end_is_let_go() -> None:
    assert list(shown(make("stop"), ids_of("x", "st"))) == ["x", "x", "xst"]


def test_a_beginning_inside_a_beginning_is_found() -> None:
    assert final(make("aab"), ids_of("a", "a", "a", "b")) == "a"
    assert final(make("abab"), ids_of("aba", "ba", "b", "x")) == ""


def test_a_stop_string_of_several_bytes_per_character() -> None:
    assert list(shown(make("漢字"), ids_of("é漢字x")))[-1] == "é"


def test_a_stop_string_that_the_last_flush_completes_is_cut_off() -> None:
    detokenizer = make("\ufffd")
    assert final(detokenizer, ids_of("a漢")[:-1]) == "a"
    assert detokenizer.stop_string == "\ufffd"


def test_the_prompt_is_no_part_of_a_stop_string() -> None:
    detokenizer = Detokenizer(TOKENIZER, ids_of("st"), SamplingParams(stop="stop"))
    assert final(detokenizer, ids_of("op")) == "op"


# Stop strings that name special tokens.

SPECIALS = {"<eos>": EOS, "<end>": EOS + 1, "<tool>": EOS + 2, "<too": EOS + 3}


def with_specials(*parts: str) -> list[int]:
    return [token_id for part in parts for token_id in ([SPECIALS[part]] if part in SPECIALS else ids_of(part))]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("keeps", [False, True])
def test_a_special_token_is_a_stop_string_whether_or_not_it_is_shown(keeps: bool, skip: bool) -> None:
    for parts in (("x", "<end>", "ab"), ("x", "<", "end>", "ab")):
        detokenizer = make(["zz", "<end>"], skip_special_tokens=skip, include_stop_str_in_output=keeps)
        assert detokenizer.push(with_specials(*parts)) == len(with_specials(*parts[:-1]))
        assert (detokenizer.text, detokenizer.stop_string) == ("x<end>" if keeps else "x", "<end>")


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize(
    ("stop", "parts"),
    [
        ("ab<end>", ("ab", "<end>")),
        ("b<end>", ("ab", "<end>")),
        ("<end>\n\n", ("x", "<end>", "\n\n")),
        ("<end>st", ("x", "<end>", "stop")),
        ("<end><eos>", ("x", "<end>", "<eos>")),
        ("<tool>", ("x", "<tool>")),
        ("<too", ("x", "<too")),
        ("<eos>st<end>", ("x", "<eos>", "st", "<end>")),
    ],
)
def test_a_stop_string_may_contain_special_tokens(stop: str, parts: tuple[str, ...], keeps: bool, skip: bool) -> None:
    detokenizer = make(stop, skip_special_tokens=skip, include_stop_str_in_output=keeps)
    text = "".join(parts)
    expected = text[: text.index(stop) + (len(stop) if keeps else 0)]
    assert (final(detokenizer, with_specials(*parts)), detokenizer.stop_string) == (expected, stop)


def test_other_special_tokens_are_left_out() -> None:
    ids = with_specials("<tool>", "ab", "<tool>", "x", "<tool>", "st", "<end>")
    assert list(shown(make("<end>"), ids)) == ["", "ab", "ab", "abx", "abx", "abxst", "abxst"]
    kept = make("<end>", include_stop_str_in_output=True)
    assert final(kept, ids) == "abxst<end>"


def test_a_hidden_token_splits_no_stop_string() -> None:
    assert final(make(["stop", "<end>"]), with_specials("x", "st", "<tool>", "op")) == "x"


def test_a_part_of_a_hidden_token_is_no_text() -> None:
    for stop in ("end", "<e", "end>x", "x<"):
        detokenizer = make(stop)
        assert final(detokenizer, with_specials("x", "<end>", "x")) == "xx"
        assert detokenizer.stop_string is None


def test_a_beginning_with_a_hidden_token_is_let_go() -> None:
    texts = list(shown(make("ab<end>st"), with_specials("ab", "<end>", "op")))
    assert texts == ["", "", "abop", "abop"]


def test_a_special_stop_string_does_not_count_before_the_minimum() -> None:
    detokenizer = make("<end>", min_tokens=2)
    assert final(detokenizer, with_specials("<end>", "x", "<end>", "x")) == "x"
    assert detokenizer.stop_string == "<end>"


# Minimum and stop tokens.


def test_stop_strings_do_not_count_before_the_minimum() -> None:
    detokenizer = make("ab", min_tokens=2)
    assert final(detokenizer, ids_of("ab", "x", "ab", "x")) == "abx"
    assert detokenizer.stop_string == "ab"


def test_a_stop_string_on_the_last_token_of_the_minimum_does_not_count() -> None:
    assert final(make("ab", min_tokens=2), ids_of("x", "ab")) == "xab"
    assert final(make("ab", min_tokens=1), ids_of("x", "ab")) == "x"


def test_a_stop_string_that_ended_before_the_minimum_does_not_count_later() -> None:
    detokenizer = make(["xaby", "ab"], min_tokens=3)
    assert final(detokenizer, ids_of("x", "a", "b", "s", "t")) == "xabst"  # "xab" is held back: it may become "xaby"


def test_a_stop_token_is_hidden() -> None:
    detokenizer = make()
    detokenizer.push(ids_of("x", "ab"), is_last_shown=False)
    detokenizer.finish()
    assert detokenizer.text == "x"


def test_a_hidden_stop_token_completes_no_stop_string() -> None:
    detokenizer = make("xab")
    detokenizer.push(ids_of("x", "ab"), is_last_shown=False)
    detokenizer.finish()
    assert (detokenizer.text, detokenizer.stop_string) == ("x", None)


def test_only_the_last_token_is_hidden() -> None:
    detokenizer = make()
    detokenizer.push([*ids_of("x"), EOS, *ids_of("y"), EOS], is_last_shown=False)
    assert detokenizer.text == "xy"


# Random texts and stop strings.

PARTS = st.lists(st.sampled_from([*PIECES, "a", "b", "c", "s", "<", "\n", "é", "漢"]), max_size=14)
STOPS = st.lists(st.text(st.sampled_from("abcstop<\né漢"), min_size=1, max_size=4), min_size=1, max_size=4)


def expected_text(whole: str, stops: list[str], keeps_stop: bool) -> set[str]:
    """Returns the texts that may be shown: up to any one of the stop strings found, or the whole text if there is
    none."""
    ends = sorted((at + len(stop), at) for stop in stops for at in [whole.find(stop)] if at >= 0)
    if not ends:
        return {whole}
    return {whole[: end if keeps_stop else at] for end, at in ends}


@settings(max_examples=400, deadline=None)
@given(parts=PARTS, stops=STOPS, chunk=st.integers(1, 4), keeps_stop=st.booleans())
def test_no_stop_string_ever_leaks(parts: list[str], stops: list[str], chunk: int, keeps_stop: bool) -> None:
    detokenizer = make(stops, include_stop_str_in_output=keeps_stop)
    texts = list(shown(detokenizer, ids_of(*parts), chunk))
    end = texts[-1]
    for text in texts[:-1]:
        assert not any(stop in text for stop in stops) or text == end
        assert end.startswith(text)
    assert end in expected_text("".join(parts), stops, keeps_stop)
    kept = detokenizer.stop_string or ""
    assert not any(stop in end[: len(end) - (len(kept) if keeps_stop else 0)] for stop in stops)
    assert (detokenizer.stop_string is None) == (not any(stop in "".join(parts) for stop in stops))


@settings(max_examples=200, deadline=None)
@given(parts=PARTS, stops=STOPS, chunk=st.integers(2, 5))
def test_the_text_does_not_depend_on_how_many_tokens_come_at_once(
    parts: list[str], stops: list[str], chunk: int
) -> None:
    ids = ids_of(*parts)
    *_, together = shown(make(stops), ids, chunk)
    assert together == final(make(stops), ids)


@settings(max_examples=200, deadline=None)
@given(parts=PARTS, stops=STOPS)
def test_as_little_as_possible_is_held_back(parts: list[str], stops: list[str]) -> None:
    """The text held back could be the beginning of a stop string, from its first character on."""
    detokenizer, whole = make(stops), ""
    for part in parts:
        for token_id in ids_of(part):
            detokenizer.push([token_id])
        whole += part
        if detokenizer.stop_string is not None:
            return
        held = whole[len(detokenizer.text) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)
        assert whole.startswith(detokenizer.text)
