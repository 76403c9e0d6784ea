"""Types of flags: turn the text of a flag into its value, and say what is wrong with it.

Each raises argparse.ArgumentTypeError, which argparse prints beside the flag.
"""

import argparse
import json
import math
from typing import Any

from ..memory.budget import parse_memory

MAX_SECONDS = 1_000_000  # eleven days; timers take no infinity
UNITS = {"k": 1000, "m": 1000**2, "K": 1024, "M": 1024**2}


def count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def tokens(text: str) -> int:
    """As vLLM reads it: 16k is 16000, and 16K is 16384."""
    if text[:-1].isdigit() and text[-1] in UNITS:
        text = str(int(text[:-1]) * UNITS[text[-1]])
    return count(text)


def port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return int(text)


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 to {MAX_SECONDS}")
    return value


def memory(text: str) -> str:
    """Checks a size. The engine turns it into bytes at start-up, but a mistake is an error of the command line."""
    try:
        parse_memory(text, usable=1 << 40)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def size(text: str) -> int:
    try:
        num_bytes = parse_memory(text, usable=0)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not num_bytes:
        raise argparse.ArgumentTypeError(f"{text!r} is a fraction; give a size such as 256M")
    return num_bytes


def named_path(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH")
    return name, path


def lora_module(text: str) -> tuple[str, str]:
    """vLLM's two forms: name=path, or a JSON object with "name" and "path"."""
    if not text.lstrip().startswith("{"):
        return named_path(text)
    module = json_object(text)
    name, path = module.get("name"), module.get("path")
    if not (isinstance(name, str) and name and isinstance(path, str) and path):
        raise argparse.ArgumentTypeError(f'{text!r} has not both "name" and "path"')
    return name, path


def scaled_name(text: str) -> tuple[str, float]:
    name, equals, scale = text.partition("=")
    try:
        return name, float(scale) if equals else 1.0
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME or NAME=SCALE") from None


def weights(text: str) -> dict[str, float]:
    found = {}
    for part in text.split(","):
        name, weight = named_path(part)
        try:
            found[name] = float(weight)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{weight!r} is not a number") from None
    return found


def json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value
