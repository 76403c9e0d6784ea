"""Reads a model from disk: configuration, architecture, tensors, hub ids, GGUF files.

Owns the meaning of a model's files. Must not know the forward pass, requests or adapters' weights.
"""
