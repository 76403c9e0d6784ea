"""Computes the LoRA operation on a GPU. Owns the Triton kernels and the tables that they read.

Must not know requests or model classes. Only `lora` and `kernels` import triton, which the extra `cuda` installs.
"""
