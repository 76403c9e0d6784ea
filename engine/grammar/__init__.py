"""Structured output: from what a request asks for to the tokens that each step may draw.

Owns the one library of grammars. Must not know torch, a model, or another request.
"""
