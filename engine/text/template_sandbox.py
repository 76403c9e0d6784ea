"""TemplateSandbox: Jinja for untrusted programs. An operation pays from a budget of characters before it makes text.

The lines of a program can be watched, but one operation in C cannot be stopped. So each operation that could make a
large value from small ones pays beforehand. No value, counted as a tree, is larger than one budget, so that an
operation that only reads a value ends soon, too.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from functools import wraps
from types import BuiltinMethodType
from typing import Any

from jinja2 import Environment, nodes, pass_environment
from jinja2.compiler import CodeGenerator, Frame
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace

MAX_CHARACTERS = 32 << 20  # the budget of one run; a full context of 128k tokens has half a million
MAX_BITS = 16384  # size of an integer
MAX_WIDTH = 100  # characters of an indent or a separator, or number of decimals
ITEM = 16  # characters that each value in a list counts as
SLOW_METHODS = (
    "lstrip",
    "rfind",
    "rindex",
    "rpartition",
    "rsplit",
    "rstrip",
    "strip",
)  # their time grows with the length of their argument
WIDE = re.compile(r"\d{4}|\*")  # a field of a format of 1000 characters or more, or of a width given as an argument

# The filters and methods that templates of models call. All other filters of Jinja and methods of Python are missing.
PLAIN_FILTERS = (
    "abs attr capitalize count d default dictsort e escape first float int items last length list lower map max min"
    " reject rejectattr reverse safe select selectattr sort title truncate unique upper wordcount"
)
METHODS = {
    str: "capitalize casefold count encode endswith find format index isalnum isalpha isascii isdecimal isdigit islower"
    " isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex"
    " rpartition rsplit rstrip split splitlines startswith strip swapcase title upper",
    dict: "copy get items keys values",
    list: "copy count index",
    tuple: "count index",
    int: "bit_length",
    float: "is_integer",
    bytes: "decode",
}

_left: ContextVar[list[int]] = ContextVar("characters left to the program that runs")


@contextmanager
def budget() -> Iterator[None]:
    """Inside `with`, all operations of templates together may make MAX_CHARACTERS; beyond it they raise MemoryError."""
    token = _left.set([MAX_CHARACTERS])
    try:
        yield
    finally:
        _left.reset(token)


def _pay(num_characters: int) -> None:
    left = _left.get()
    left[0] -= num_characters
    if left[0] < 0:
        raise MemoryError(f"it makes more than {MAX_CHARACTERS} characters")


def _size(value: Any) -> int:
    """Returns the approximate length of a value's text in characters. Raises MemoryError for a value that, counted as a
    tree, is larger than a whole budget."""
    if isinstance(value, str):
        return ITEM + len(value)
    size, pending = 0, [value]
    while pending:
        item = pending.pop()
        size += ITEM
        if isinstance(item, str | bytes):
            size += len(item)
        elif isinstance(item, Mapping):
            pending.extend(item)
            pending.extend(item.values())
        elif isinstance(item, list | tuple | set | frozenset):
            pending.extend(item)
        if size + ITEM * len(pending) > MAX_CHARACTERS:
            raise MemoryError(f"it makes a value of more than {MAX_CHARACTERS} characters")
    return size


def _checked(value: Any) -> Any:
    _size(value)
    return value


def _paid(value: Any) -> Any:
    """Pays for a value after one operation has made it, for operations whose result is no larger than their inputs."""
    if isinstance(value, str | bytes):
        _pay(len(value))
    elif isinstance(value, list | tuple):
        _pay(ITEM * len(value))
    return value


def _narrow(width: Any) -> Any:
    if (len(width) if isinstance(width, str) else abs(width or 0)) > MAX_WIDTH:
        raise ValueError(f"{width!r:.20} is a width of more than {MAX_WIDTH}")
    return width


# Operators.


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MAX_BITS:
        raise OverflowError(f"an integer of more than {MAX_BITS} bits")
    return left**right


def _product(left: Any, right: Any) -> Any:
    for times, value in ((left, right), (right, left)):
        if isinstance(times, int) and not isinstance(value, int | float):
            _pay(max(times, 0) * _size(value))
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MAX_BITS:
        raise OverflowError(f"an integer of more than {MAX_BITS} bits")
    return _checked(left * right)


def _sum(left: Any, right: Any) -> Any:
    for value in (left, right):
        _paid(value)
    return _checked(left + right)


def _remainder(left: Any, right: Any) -> Any:
    return _percent(left, right) if isinstance(left, str) else left % right


def _percent(form: str, values: Any) -> str:
    if WIDE.search(form):
        raise ValueError("a format with a field of 1000 characters or more")
    _pay(len(form) + form.count("%") * (_size(values) + 1000))
    return str(form % values)


# Filters and functions.


def _join(values: Iterable[Any], between: Any = "") -> str:
    found = list(values)
    _pay(sum(map(_size, found)) + len(found) * _size(between))
    return str(between).join(map(str, found))


@pass_environment
def _join_filter(environment: Environment, values: Iterable[Any], d: Any = "", attribute: Any = None) -> str:
    return _join(values if attribute is None else map(make_attrgetter(environment, attribute), values), d)


def _replace(value: Any, old: str, new: str, count: int | None = None) -> str:
    text = str(value)
    _pay(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    _pay(len(text) + (text.count("\n") + 1) * MAX_WIDTH)
    indented: str = FILTERS["indent"](text, _narrow(width), first, blank)
    return indented


def _tojson(value: Any, **options: Any) -> str:
    """Replaces Jinja's filter, which escapes HTML."""
    for width in (options.get("indent"), *(options.get("separators") or ())):
        _narrow(width)
    parts = []
    for part in json.JSONEncoder(**{"ensure_ascii": False} | options).iterencode(value):
        _pay(len(part))
        parts.append(part)
    return "".join(parts)


def _strftime_now(form: str) -> str:
    if WIDE.search(_narrow(form)):
        raise ValueError("a format with a field of 1000 characters or more")
    return datetime.now().strftime(form)


def _raise_exception(message: str) -> None:
    raise ValueError(f"{message!s:.1000}")


def _paying(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def paying(*args: Any, **options: Any) -> Any:
        return _paid(function(*args, **options))

    return paying


class _Namespace(Namespace):
    """A namespace whose text does not show its content, which may grow after its size was checked."""

    __repr__ = object.__repr__


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        if WIDE.search(format_spec):
            raise ValueError("a format with a field of 1000 characters or more")
        _pay(_size(value))
        return super().format_field(value, format_spec)


class _Generator(CodeGenerator):
    """Generates code that folds no constants at compile time and checks the size of literals at run time."""

    def _output_child_to_const(self, node: nodes.Expr, frame: Frame, finalize: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, frame, finalize)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        self.write("environment.joined(")
        super().visit_List(nodes.List(node.nodes), frame)
        self.write(")")

    def visit_List(self, node: nodes.List, frame: Frame) -> None:
        self.write("environment.checked(")
        super().visit_List(node, frame)
        self.write(")")

    def visit_Dict(self, node: nodes.Dict, frame: Frame) -> None:
        self.write("environment.checked(")
        super().visit_Dict(node, frame)
        self.write(")")

    def visit_Tuple(self, node: nodes.Tuple, frame: Frame) -> None:
        self.write("environment.checked(" if node.ctx == "load" else "(")  # otherwise it is an assignment's target
        super().visit_Tuple(node, frame)
        self.write(")")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:
        self.write("environment.paid(" if isinstance(node.arg, nodes.Slice) else "(")
        super().visit_Getitem(node, frame)
        self.write(")")


class TemplateSandbox(ImmutableSandboxedEnvironment):
    code_generator_class = _Generator
    intercepted_binops = frozenset(("**", "*", "+", "%"))
    checked = staticmethod(_checked)
    joined = staticmethod(_join)
    paid = staticmethod(_paid)

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, finalize=self._finalize, **options)
        self.binop_table |= {"**": _power, "*": _product, "+": _sum, "%": _remainder}
        self.filters = {name: _paying(FILTERS[name]) for name in PLAIN_FILTERS.split()} | {
            "format": lambda form, *args, **named: _percent(str(form), named or args),
            "indent": _indent,
            "join": _join_filter,
            "replace": _replace,
            "round": lambda value, precision=0, method="common": FILTERS["round"](value, _narrow(precision), method),
            "string": lambda value: str(self._finalize(value)),
            "tojson": _tojson,
            "trim": lambda value, chars=None: _paid(FILTERS["trim"](value, _narrow(chars))),
        }
        self.globals = {
            "dict": dict,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "range": self.globals["range"],
            "strftime_now": _strftime_now,
        }

    @staticmethod
    def concat(parts: Iterable[str]) -> str:  # joins the output of a template and of its blocks
        found = list(parts)
        _pay(sum(map(len, found)))
        return "".join(found)

    @staticmethod
    def _finalize(value: Any) -> Any:
        if not isinstance(value, str):
            _pay(_size(value))
        return value

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        allowed = next((names for kind, names in METHODS.items() if isinstance(obj, kind)), attr)
        return attr in allowed.split() and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        formatter = _Formatter(self)
        return lambda *args, **named: str(_paid(formatter.vformat(value.__self__, args, named)))

    def call(self, context: Context, obj: Any, *args: Any, **options: Any) -> Any:
        if isinstance(obj, BuiltinMethodType) and isinstance(obj.__self__, str):
            if obj.__name__ == "replace":
                return _replace(obj.__self__, *args, **options)
            if obj.__name__ == "join":
                (values,) = args
                return _join(values, obj.__self__)
            if obj.__name__ in SLOW_METHODS:
                _narrow(args[0] if args else options.get("sep"))
        return _paid(_checked(super().call(context, obj, *args, **options)))
