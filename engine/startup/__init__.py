"""Builds an engine from a configuration: chooses the backend, sizes the arena, loads the weights.

Owns the order of a start. Must not know users, text or processes.
"""
