"""StopStrings: against the naive definitions, and what one character of text costs."""

from hypothesis import given, settings
from hypothesis import strategies as st

from blora.engine.text.stop_strings import StopStrings

PATTERNS = st.lists(st.text(st.sampled_from("abc"), min_size=1, max_size=5), min_size=1, max_size=5, unique=True)


def make(*patterns: str) -> StopStrings:
    return StopStrings({pattern: pattern for pattern in patterns})


def test_it_knows_which_string_a_pattern_stands_for() -> None:
    assert StopStrings({"a!": "a<end>"}).find("xa!", 0) == (1, "a<end>")


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from("abc"), max_size=14), patterns=PATTERNS, num_known=st.integers(0, 14))
def test_it_finds_the_first_that_ends_in_the_new_text(text: str, patterns: list[str], num_known: int) -> None:
    expected = [
        (at, pattern)
        for pattern in patterns
        for at in range(len(text))
        if text[at:].startswith(pattern) and at + len(pattern) > num_known
    ]
    assert make(*patterns).find(text, num_known) == min(expected, default=None)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.sampled_from("abc"), max_size=14), patterns=PATTERNS)
def test_it_finds_the_longest_beginning(text: str, patterns: list[str]) -> None:
    beginnings = [
        length
        for length in range(1, len(text) + 1)
        for pattern in patterns
        if len(pattern) > length and pattern.startswith(text[-length:])
    ]
    assert make(*patterns).num_beginning(text) == max(beginnings, default=0)


class CountingText(str):
    """A text that counts the comparisons of `find`."""

    num_comparisons = 0

    def endswith(self, *args: object) -> bool:
        self.num_comparisons += 1
        return super().endswith(*args)  # type: ignore[arg-type]


def test_strings_that_cannot_end_in_the_new_text_cost_nothing() -> None:
    text = CountingText("x" * 1000 + "y")
    stops = make(*(f"{number} stop" for number in range(200)), "y", "wy")
    assert stops.find(text, 1000) == (1000, "y")
    assert text.num_comparisons == 2
