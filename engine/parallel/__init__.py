"""Shares one model between processes (tensor parallelism).

Owns the shards' processes and their end. Must not know requests.
"""
