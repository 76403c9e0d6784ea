"""Reads what strangers write: a PEFT folder, checked as it is read. This folder is the trust boundary.

Owns the rules of PEFT's files. Must not know requests, pages or the device; imports no torch.
"""
