"""The forward pass of a model in torch, and its one argument, ForwardBatch.

It owns layers, weights and their cut into shards. It must not know files, requests or the backend that runs it.
"""
