"""The LoRA operation on a GPU. `lora` and `kernels` import triton, which the extra `cuda` brings; the rest does not."""
