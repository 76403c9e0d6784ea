"""Grammars that are compiled in the process of their caller, as LLM does it: in the thread of the caller."""

from dataclasses import replace

from ..grammar.grammars import GrammarOrder, Grammars
from ..grammar.library_text import library_text
from .front_end import Checked


def with_grammar(call: Checked, grammars: Grammars) -> Checked:
    """Compiles the grammar of a call, which `grammars` then keeps. Raises InvalidRequest."""
    if call.opened.grammar is None:
        return call
    order = GrammarOrder(library_text(call.opened.grammar), spelled=call.opened.spelled_tokens)
    grammars.grammar(order)
    return replace(call, grammar=order)
