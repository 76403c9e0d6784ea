"""Turns text and conversations into tokens, and tokens into text.

Owns tokenizers and chat templates. Must not know requests, steps or torch.
"""
