"""Shares one model between processes (tensor parallelism).

Owns the shards' processes, their meeting and their end. Must not know requests.
"""
