"""The native kernels: C++ sources, and `library`, which loads a build of them and checks every call.

It owns the arithmetic on the CPU and the layout of packed weights and KV. It must not know models or requests.
"""
