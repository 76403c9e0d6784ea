"""Paged attention: the interface, and one file for each backend that computes it.

It owns the order of K and V in a block. It must not know requests, or how blocks are given out.
"""
