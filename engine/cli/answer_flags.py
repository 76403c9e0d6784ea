"""The flags that say how the model writes reasoning and calls of tools."""

import argparse
from typing import TYPE_CHECKING

from ..answers.formats import AUTO, CALL_FORMATS, NONE, REASONING_FORMATS

if TYPE_CHECKING:
    from ..answers.answer_form import AnswerFormats

ANSWER_FLAGS = ("tool_call_parser", "reasoning_parser")  # fields of AnswerFormats


def add_answer_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answers", "What chats over HTTP show besides content.")
    group.add_argument(
        "--tool-call-parser",
        choices=(AUTO, NONE, *CALL_FORMATS),
        default=AUTO,
        help="format in which the model calls tools; auto takes the one that its chat template shows for certain "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--reasoning-parser",
        choices=(AUTO, NONE, *REASONING_FORMATS),
        default=AUTO,
        help="format of the model's reasoning; auto takes the one that its chat template knows, none leaves it in the "
        "content (default: %(default)s)",
    )


def answer_formats(args: argparse.Namespace) -> "AnswerFormats":
    from ..answers.answer_form import AnswerFormats  # imports numpy, which no help needs

    return AnswerFormats(**{name: getattr(args, name) for name in ANSWER_FLAGS})
