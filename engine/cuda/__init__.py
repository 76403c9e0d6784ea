"""The computation of a step on a GPU: device, copies beside the step, size of the arena, graphs. Imports without a GPU.

It owns the only way to a GPU and to FlashInfer. It must not know how requests are scheduled.
"""
