"""Executes one step: plan, execute, commit.

Owns the tensors of a step and the types of its backends. Must not know text, users or how a backend is chosen.
"""
