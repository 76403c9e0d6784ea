"""The files of a model: configuration, architecture, tensors, hub ids, GGUF.

It owns their meaning. It must not know the forward pass, requests or adapters' weights.
"""
