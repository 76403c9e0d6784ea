"""The forward pass of a model in torch, and its one argument, ForwardBatch.

Owns layers, weights and what a shard has of them. Must not know files, requests or the backend that runs it.
"""
