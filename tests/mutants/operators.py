"""Operators: the small changes of a source that tests ought to notice, one at a time.

Left out are check_integrity and what it calls, which look and decide nothing, and the texts of errors.
"""

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
LEFT_OUT = ("check_integrity", "_require", "__repr__")


@dataclass(frozen=True, slots=True)
class Mutant:
    line: int
    change: str
    source: str


def mutants(source: str) -> list[Mutant]:
    tree = ast.parse(source)
    found = []
    for number, node in enumerate(_changeable(tree)):
        for index, (change, _) in enumerate(_changes(node)):
            other = copy.deepcopy(tree)
            _, apply = list(_changes(list(_changeable(other))[number]))[index]
            apply()
            found.append(Mutant(getattr(node, "lineno", 0), change, ast.unparse(ast.fix_missing_locations(other))))
    return found


def _changeable(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.FunctionDef) and node.name in LEFT_OUT or isinstance(node, ast.Raise):
        return
    yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _changeable(child)


def _changes(node: ast.AST) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yields a description of each change of a node, and what makes it."""
    match node:
        case ast.Compare(ops=[op]) if type(op) in COMPARISONS:
            new = COMPARISONS[type(op)]
            yield f"{type(op).__name__} becomes {new.__name__}", lambda: setattr(node, "ops", [new()])
        case ast.BoolOp(op=op):
            other = ast.Or if isinstance(op, ast.And) else ast.And
            yield f"{type(op).__name__} becomes {other.__name__}", lambda: setattr(node, "op", other())
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in ARITHMETIC:
            swapped = ARITHMETIC[type(op)]
            yield f"{type(op).__name__} becomes {swapped.__name__}", lambda: setattr(node, "op", swapped())
        case ast.UnaryOp(op=ast.Not()):
            yield "not goes", lambda: setattr(node, "operand", ast.UnaryOp(ast.Not(), node.operand))
        case ast.Constant(value=bool(value)):
            yield f"{value} becomes {not value}", lambda: setattr(node, "value", not value)
        case ast.Constant(value=int(value)):
            yield f"{value} becomes {value + 1}", lambda: setattr(node, "value", value + 1)
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test) if _is_plain(test):
            yield "the condition is negated", lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), test))
        case ast.Expr(value=ast.Call()):
            yield f"{ast.unparse(node)[:60]} goes", lambda: setattr(node, "value", ast.Constant(None))


def _is_plain(test: ast.expr) -> bool:
    """Whether no other operator changes the condition as a whole."""
    return not isinstance(test, ast.Compare | ast.BoolOp) and not isinstance(getattr(test, "op", None), ast.Not)
