"""ConfigFile: flags of a command from a YAML file, whose keys are the flags' names. Flags on the command line win.

Values become the texts that the flags take, so a file says nothing that a command line could not.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A file of flags that is none, or says what no flag does. The message names the key."""


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Lets every command below a parser that has flags take them from a file."""
    for command in _commands(parser).values():
        add_config_flags(command)
    if not _commands(parser) and _options(parser):
        parser.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="YAML file of flags by their names without dashes, such as timeout: 60; flags given beside it win "
            "(default: none)",
        )


def with_config(argv: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
    """Returns the arguments of a command line with those of its --config. Raises ConfigError."""
    if argv and (command := _commands(parser).get(argv[0])) is not None:
        return [argv[0], *with_config(argv[1:], command)]
    path = _config_of(argv, parser)
    if path is None:
        return list(argv)
    given = {action.dest for argument in argv if (action := _action_of(argument, parser)) is not None}
    before: list[str] = []
    after: list[str] = []  # a flag of several values would take an argument for one of them
    for key, value in _read(path).items():
        action = _option(key, parser, path)
        if action.dest not in given:
            (after if action.nargs == "+" else before).extend(_arguments(f"--{_dashed(key)}", value, action, path))
    return [*before, *argv, *after]


def _commands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    (group,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)] or (None,)
    return {} if group is None else group.choices


def _config_of(argv: Sequence[str], parser: argparse.ArgumentParser) -> Path | None:
    for index, argument in enumerate(argv):
        action = _action_of(argument, parser)
        if action is not None and action.dest == "config":
            _, equals, value = argument.partition("=")
            return Path(value) if equals else Path(argv[index + 1]) if index + 1 < len(argv) else None
    return None


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text") from None
    except OSError as error:
        raise ConfigError(f"the file of flags {path} cannot be read: {error.strerror}") from None
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise ConfigError(f"{path} has to have names of flags and their values, such as port: 50051")
    return found


def _dashed(key: str) -> str:
    return key.lstrip("-").replace("_", "-")


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Name without dashes -> flag."""
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    return {text[2:]: action for action in actions for text in action.option_strings if text.startswith("--")}


def _action_of(argument: str, parser: argparse.ArgumentParser) -> argparse.Action | None:
    """The flag that an argument names, which may be the beginning of its name."""
    if not argument.startswith("-"):
        return None
    options, name = _options(parser), _dashed(argument.partition("=")[0])
    short = [action for action in parser._actions if argument.partition("=")[0] in action.option_strings]
    begun = [action for text, action in options.items() if text.startswith(name)]
    return options.get(name) or next(iter([*short, *begun]), None)


def _option(key: str, parser: argparse.ArgumentParser, path: Path) -> argparse.Action:
    options = _options(parser)
    name = _dashed(key)
    if name in options and name != "config":
        return options[name]
    near = get_close_matches(name, options, n=1, cutoff=0)
    raise ConfigError(f"{path}: {key!r} is no flag of {parser.prog}; the nearest one is {near[0]!r}")


def _arguments(flag: str, value: Any, action: argparse.Action, path: Path) -> list[str]:
    if value is None:
        return []
    if action.nargs == 0:
        return _switch(flag, value, action, path)
    if isinstance(action, argparse._AppendAction) and action.nargs is None:
        return [f"{flag}={text}" for text in _texts(value)]
    if action.nargs == "+":
        return [flag, *_texts(value)]
    return [f"{flag}={_text(value)}"]


def _switch(flag: str, value: Any, action: argparse.Action, path: Path) -> list[str]:
    if not isinstance(value, bool):
        raise ConfigError(f"{path}: {flag[2:]!r} is true or false, not {value!r}")
    negative = flag.replace("--", "--no-", 1)
    if value:
        return [flag]
    return [negative] if negative in action.option_strings else []


def _texts(value: Any) -> Iterator[str]:
    """The values of a flag that takes several: NAME=VALUE for each entry of a mapping."""
    if isinstance(value, dict):
        yield from (f"{name}={_text(entry)}" for name, entry in value.items())
    else:
        yield from map(_text, value if isinstance(value, list) else [value])


def _text(value: Any) -> str:
    """The value of a flag: JSON for what has a structure, but for the weights of names, and lists of plain values."""
    if isinstance(value, dict) and value and all(isinstance(weight, int | float) for weight in value.values()):
        return ",".join(f"{name}={weight}" for name, weight in value.items())
    if isinstance(value, list) and not any(isinstance(entry, dict | list) for entry in value):
        return ",".join(map(_text, value))
    return json.dumps(value) if isinstance(value, dict | list | bool) else str(value)
