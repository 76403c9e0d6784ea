"""Turns a call into requests, and tokens into outputs.

Owns the one validator and the texts of unfinished requests. Runs no step and imports no torch.
"""
