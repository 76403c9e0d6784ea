"""The page of the command line: every command, its arguments and flags, as its parser knows them."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from blora.engine.cli.main import build_parser, further_commands

from .markdown import code, page, prose, sentence, table


@dataclass(frozen=True, slots=True)
class Command:
    name: str  # such as "blora serve"
    summary: str
    parser: argparse.ArgumentParser


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag, or an argument without a name."""

    dest: str
    names: str  # such as "--host HOST"
    text: str
    default: str


def make() -> str:
    commands = list(commands_of(build_parser(further_commands())))
    return page(
        "Command line",
        "the parsers of `engine/cli/` and `bench/cli.py`",
        "`blora COMMAND --help` prints the same on a terminal. The exit status is 0 on success, 1 on failure, and 2 "
        "for wrong arguments. `blora serve` also takes the flags of `vllm serve` that "
        "mean nothing here; [a table](vllm.md) lists them.",
        *(part for command in commands for part in _section(command)),
    )


def commands_of(parser: argparse.ArgumentParser, summary: str = "") -> Iterator[Command]:
    """The commands below a parser; one without commands is one itself."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for group in groups:
        summaries = {choice.dest: choice.help or "" for choice in group._choices_actions}
        for name, command in group.choices.items():
            yield from commands_of(command, summaries.get(name, ""))
    if not groups:
        yield Command(parser.prog, summary, parser)


def flags_of(command: Command) -> Iterator[Flag]:
    """Arguments come before flags. Those that `--help` does not show are left out."""
    for action in sorted(command.parser._actions, key=lambda action: bool(action.option_strings)):
        if not isinstance(action, argparse._HelpAction) and action.help != argparse.SUPPRESS:
            text = "" if action.help is None else action.help % {**vars(action), "prog": command.name}
            meaning, _, words = text.removesuffix(")").partition(" (default: ")
            yield Flag(action.dest, _names(action), meaning if words else text, words or _default(action))


def _default(action: argparse.Action) -> str:
    """The default of an action whose help text does not tell it."""
    if action.required:
        return "required"
    if action.nargs == 0:
        return "off"
    return "none" if action.default in (None, "", [], argparse.SUPPRESS) else str(action.default)


def _names(action: argparse.Action) -> str:
    """Returns the flags as `--help` shows them, whatever the version of Python."""
    if not action.option_strings:
        return _value(action)
    name = ", ".join(action.option_strings)
    return name if action.nargs == 0 else f"{name} {_value(action)}"


def _value(action: argparse.Action) -> str:
    if action.metavar is not None:
        return str(action.metavar)
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper() if action.option_strings else action.dest


def _section(command: Command) -> Iterator[str]:
    yield f"## {command.name}"
    yield sentence(command.summary)
    rows = [(code(flag.names), prose(flag.default), sentence(flag.text)) for flag in flags_of(command)]
    if rows:
        yield table(("argument or flag", "default", "meaning"), rows)
