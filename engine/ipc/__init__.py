"""Joins processes: channels, message schemas, sealed memory, the life of the engine process.

Owns what passes between processes. Must not know what a message means to its receiver.
"""
