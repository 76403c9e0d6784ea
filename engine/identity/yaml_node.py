"""YamlNode: a value of a YAML file that knows its line and its path, so that every mistake is named with its place.

Knows no field. Fields that are not asked for are mistakes, as are duplicate ones.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

MAX_FILE_BYTES = 16 << 20
KINDS = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "true or false"}


class YamlNode:
    def __init__(self, file: Path, node: Any, path: str) -> None:
        self._file, self._node, self._path = file, node, path

    @classmethod
    def read(cls, file: Path) -> "YamlNode":
        """Raises OSError, ValueError."""
        data = file.read_bytes()
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"{file} has {len(data)} bytes, at most {MAX_FILE_BYTES}")
        try:
            node = yaml.compose(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f"{file}:{mark.line + 1}" if mark is not None else str(file)
            raise ValueError(f"{place}: {getattr(error, 'problem', None) or error}") from None
        if node is None:
            raise ValueError(f"{file} is empty")
        return cls(file, node, "")

    def fail(self, reason: str) -> NoReturn:
        """Raises ValueError."""
        place = f"{self._file}:{self._node.start_mark.line + 1}"
        raise ValueError(f"{place}: {self._path}: {reason}" if self._path else f"{place}: {reason}")

    def fields(self, *names: str) -> "dict[str, YamlNode]":
        """The values of a mapping that may have these fields. Raises ValueError."""
        if not isinstance(self._node, yaml.MappingNode):
            self.fail(f"is no mapping with some of {', '.join(names)}")
        found: dict[str, YamlNode] = {}
        for key, value in self._node.value:
            name = str(key.value)
            field = YamlNode(self._file, value, f"{self._path}.{name}" if self._path else name)
            if name not in names:
                YamlNode(self._file, key, field._path).fail(f"is unknown; the fields are {', '.join(names)}")
            if name in found:
                YamlNode(self._file, key, field._path).fail("is given twice")
            found[name] = field
        return found

    def items(self) -> "Iterator[YamlNode]":
        """The values of a list. Raises ValueError."""
        if not isinstance(self._node, yaml.SequenceNode):
            self.fail("is no list")
        for index, value in enumerate(self._node.value):
            yield YamlNode(self._file, value, f"{self._path}[{index}]")

    def text(self) -> str:
        return str(self._scalar("str"))

    def letters(self) -> str:
        """A text as it is written, also one that YAML takes for a number."""
        return self._scalar("str", "int", "float")

    def is_true(self) -> bool:
        return str(self._scalar("bool")).lower() in ("true", "yes", "on")

    def integer(self, least: int, most: int) -> int:
        value = self._number(int, "int")
        return int(value) if least <= value <= most else self.fail(f"{value} is not from {least} to {most}")

    def number(self, least: float, most: float) -> float:
        value = float(self._number(float, "int", "float"))
        return value if least <= value <= most else self.fail(f"{value} is not from {least:g} to {most:g}")

    def _number(self, read: Any, *kinds: str) -> Any:
        value = self._scalar(*kinds)
        try:
            return read(value.replace("_", ""))
        except ValueError:
            self.fail(f"{value!r:.80} is not {KINDS[kinds[-1]]} in decimal digits")

    def _scalar(self, *kinds: str) -> str:
        """kinds: of YAML's, in one of which the value is written."""
        is_scalar = isinstance(self._node, yaml.ScalarNode)
        if not is_scalar or self._node.tag.rpartition(":")[2] not in kinds:
            hint = "; put it in quotes" if is_scalar and kinds == ("str",) else ""
            self.fail(f"is not {KINDS[kinds[-1]]}{hint}")
        return str(self._node.value)
