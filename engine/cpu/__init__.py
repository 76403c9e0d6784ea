"""The computation of a step on the CPU, with the native kernels; the counterpart of `cuda/`.

It owns the model on our kernels. It must not know how requests are scheduled.
"""
