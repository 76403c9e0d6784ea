"""TokenStream: what it shows of an answer is what the answer adds to the text of its prompt, for each kind of
tokenizer and any end of the prompt."""

from collections.abc import Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import KINDS

from blora.engine.text.tokenizer import Tokenizer

TOKENIZERS = {kind: Tokenizer(make(), {}, None) for kind, make in KINDS.items()}
BYTE_LEVEL, BYTE_FALLBACK = TOKENIZERS["byte level"], TOKENIZERS["byte fallback"]
PARTS = ["the", " the", " cat", " ", "  ", "\n", "日", "本語", "हिन्दी", "é", "👍🏽", "x", "'s", ".", "</s>", "\ufffd"]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)
PROMPTS = [
    "日本語",
    "हिन्दी",
    "日本語" * 30,
    "x日本",
    "👍🏽",
    "the",
    "a ",
    "日" + "</s>" * 20,
    "日\ufffd",
    "\ufffd" * 30 + "x",
    "\ufffd ",
]
KIND = st.sampled_from(sorted(TOKENIZERS))


def shown(tokenizer: Tokenizer, prompt: Sequence[int], answer: Sequence[int], skip: bool = True) -> str:
    stream = tokenizer.decode_stream(prompt, skip)
    return "".join([*(stream.push(token_id) for token_id in answer), stream.flush()])


def added(tokenizer: Tokenizer, prompt: Sequence[int], answer: Sequence[int], skip: bool = True) -> str:
    """Returns what the answer adds to the prompt's text, decoded as a whole."""
    before, whole = tokenizer.decode(prompt, skip), tokenizer.decode([*prompt, *answer], skip)
    assert whole.startswith(before)
    return whole[len(before) :]


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("kind", ["byte fallback", "metaspace"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_an_answer_keeps_its_leading_space(prompt: str, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    answer = [tokenizer.token_id("▁the"), tokenizer.token_id("▁cat")]
    for ids in (tokenizer.encode(prompt), encode(tokenizer, prompt)):
        if tokenizer.decode(ids):
            assert shown(tokenizer, ids, answer) == " the cat"


@pytest.mark.parametrize("kind", ["byte fallback", "metaspace"])
def test_the_first_word_of_a_text_has_no_space(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    answer = [tokenizer.token_id("▁the"), tokenizer.token_id("▁cat")]
    for prompt in ([], [1], [1, 2]):
        assert shown(tokenizer, prompt, answer) == "the cat"
    assert shown(tokenizer, [1], answer, skip=False) == added(tokenizer, [1], answer, skip=False)


@settings(max_examples=300)
@given(kind=KIND, prompt=TEXTS, answer=TEXTS, skip=st.booleans())
def test_the_text_of_an_answer_is_what_it_adds(kind: str, prompt: str, answer: str, skip: bool) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(prompt), encode(tokenizer, answer)
    before = tokenizer.decode(ids[0], skip)
    # Where nothing else is there, what is decoded so at the end may be a character or the half of one.
    assume(before.strip("\ufffd ") or not before.endswith("\ufffd"))
    assert shown(tokenizer, *ids, skip) == added(tokenizer, *ids, skip)


@settings(max_examples=300)
@given(kind=KIND, text=TEXTS, cut=st.floats(0, 1), skip=st.booleans())
def test_a_text_may_be_cut_behind_any_token(kind: str, text: str, cut: float, skip: bool) -> None:
    """A prompt that ends inside a character is left as it is: what completes the character is no character."""
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text)
    prompt, answer = ids[: round(cut * len(ids))], ids[round(cut * len(ids)) :]
    if tokenizer.decode(prompt, skip).endswith("\ufffd"):
        assert shown(tokenizer, prompt, answer, skip).lstrip("\ufffd") in tokenizer.decode(ids, skip)
    else:
        assert shown(tokenizer, prompt, answer, skip) == added(tokenizer, prompt, answer, skip)


@settings(max_examples=300)
@given(kind=st.sampled_from(["byte level", "metaspace", "word piece"]), data=st.data())
def test_any_tokens_add_up(kind: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = st.lists(st.integers(0, 320), max_size=30)
    prompt, answer = data.draw(ids), data.draw(ids)
    is_cut = kind == "byte level" and "\ufffd" in tokenizer.decode(prompt)
    expected = tokenizer.decode(answer) if is_cut else added(tokenizer, prompt, answer)
    assert shown(tokenizer, prompt, answer) == expected


@settings(max_examples=300)
@given(prompt=TEXTS, answer=st.lists(st.integers(3, 330), max_size=30))
def test_bytes_that_form_no_character_do_not_change_what_was_shown(prompt: str, answer: list[int]) -> None:
    """Decoded as a whole, a single wrong byte makes all bytes around it wrong; a stream has shown them by then."""
    ids = BYTE_FALLBACK.encode(prompt)
    text = shown(BYTE_FALLBACK, ids, answer)
    if "\ufffd" not in BYTE_FALLBACK.decode([*ids, *answer]):
        assert text == added(BYTE_FALLBACK, ids, answer)
    tokens = [BYTE_FALLBACK.token(token_id) or "" for token_id in answer]
    letters = "".join(token for token in tokens if not token.startswith("<0x")).replace("▁", "")
    rest = iter(text)
    assert all(letter in rest for letter in letters)


@pytest.mark.parametrize("num_wrong", range(10, 40))
def test_a_character_behind_many_wrong_bytes_is_whole(num_wrong: int) -> None:
    wrong = encode(BYTE_LEVEL, "日")[-1:]
    for text in ("日", "👍🏽", "é"):
        answer = [*wrong * num_wrong, *encode(BYTE_LEVEL, text)]
        assert shown(BYTE_LEVEL, [], answer) == "\ufffd" * num_wrong + text


def test_a_character_behind_many_replacement_characters_is_whole() -> None:
    ends = ("日", " the", "é", "👍🏽", "", "\ufffd")
    for text in ("\ufffd" * number + end for number in range(1, 30) for end in ends):
        assert shown(BYTE_FALLBACK, [], BYTE_FALLBACK.encode(text)) == text


def test_the_samples_of_a_prompt_search_its_end_once() -> None:
    """A prompt that ends in bytes of no character is searched for long."""
    tokenizer = Tokenizer(KINDS["byte level"](), {}, None)
    prompt = tokenizer.encode("日本語")[:-1] + tokenizer.encode("日")[:1] * 99
    streams = [tokenizer.decode_stream(prompt, True) for _ in range(9)]
    found = streams[0]._decoder.context_in.cache_info()
    assert (found.misses, found.hits) == (1, 8)
