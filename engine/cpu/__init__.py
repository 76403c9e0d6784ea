"""Computes a step on the CPU with the native kernels; looks like `cuda/`.

Owns the model on our kernels. Must not know how requests are scheduled.
"""
