"""Reads PEFT folders, which strangers write, and checks them as they are read. This package is the trust boundary.

Owns the rules of PEFT's files. Must not know requests, pages or the device; imports no torch.
"""
