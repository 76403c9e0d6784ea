"""Counts and cuts memory: the byte budget, the size of a page, the one arena.

Owns how many bytes there are and where a page lies. Must not know what a page holds.
"""
