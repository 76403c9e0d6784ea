"""The source of a class: comments, and signatures as they are written, which the class itself has lost."""

import ast
import inspect
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from textwrap import dedent


@dataclass(frozen=True, slots=True)
class Field:
    """An annotated name in the body of a class."""

    name: str
    type: str
    default: str | None  # as it is written
    comment: str  # at the end of its line, else above it


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    signature: str  # as it is written
    doc: str


@dataclass(frozen=True, slots=True)
class _File:
    lines: list[str]
    tree: ast.Module
    comments: dict[int, str]  # by line, counted from 1


@cache
def _read(path: Path) -> _File:
    text = path.read_text()
    tokens = tokenize.generate_tokens(StringIO(text).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    return _File(text.splitlines(), ast.parse(text), comments)


def _find(cls: type) -> tuple[ast.ClassDef, _File]:
    file = _read(Path(inspect.getfile(cls)))
    nodes = (node for node in ast.walk(file.tree) if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    return next(nodes), file


def doc_of(cls: type) -> str:
    """Its own: a dataclass, an Enum and an exception have one of Python's where they have none."""
    node, _ = _find(cls)
    return ast.get_docstring(node) or ""


def fields_of(cls: type) -> Iterator[Field]:
    node, file = _find(cls)
    for entry in (entry for entry in node.body if isinstance(entry, ast.AnnAssign)):
        default = None if entry.value is None else ast.unparse(entry.value)
        comment = file.comments.get(entry.end_lineno or entry.lineno) or _comment_above(entry.lineno, file)
        yield Field(ast.unparse(entry.target), ast.unparse(entry.annotation), default, comment)


def _comment_above(line: int, file: _File) -> str:
    """The lines before that hold nothing but comments."""
    lines: list[str] = []
    while file.lines[line - 2].lstrip().startswith("#"):
        line -= 1
        lines.insert(0, file.comments[line])
    return " ".join(lines)


def fields_as_written(cls: type) -> str:
    """The lines of a class that name its fields, or the members of an Enum, with the comments between them."""
    node, file = _find(cls)
    entries = [entry for entry in node.body if isinstance(entry, ast.AnnAssign | ast.Assign)]
    return dedent("\n".join(file.lines[entries[0].lineno - 1 : entries[-1].end_lineno])) if entries else ""


def functions_of(cls: type) -> Iterator[Function]:
    """The public methods and properties, and the constructor, in the order of the source."""
    node, file = _find(cls)
    for entry in node.body:
        if not isinstance(entry, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if entry.name == "__init__" or not entry.name.startswith("_"):
            yield Function(entry.name, _signature(entry, file), ast.get_docstring(entry) or "")


def _signature(entry: ast.FunctionDef | ast.AsyncFunctionDef, file: _File) -> str:
    """Returns the source from the first decorator to the type of the result."""
    first = min([entry.lineno, *(decorator.lineno for decorator in entry.decorator_list)])
    last = entry.body[0].lineno - 1 if entry.returns is None else entry.returns.end_lineno
    return dedent("\n".join(file.lines[first - 1 : last])).rstrip(":")


def alias_as_written(name: str, path: Path) -> str:
    """An assignment at the top of a module, with the comments above it."""
    file = _read(path)
    for entry in file.tree.body:
        if isinstance(entry, ast.Assign) and ast.unparse(entry.targets[0]) == name:
            comment = _comment_above(entry.lineno, file)
            written = file.lines[entry.lineno - 1 : entry.end_lineno]
            return "\n".join([f"# {comment}", *written] if comment else written)
    raise LookupError(f"{path} assigns no {name}")
