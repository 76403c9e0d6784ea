"""Foreign: what a file or a folder of another program is, so that a refusal can say so. Opens nothing."""

import re
from collections.abc import Iterable

LFS_PREFIX = b"version https://git-lfs.github.com/spec/"
LFS_POINTER = "a Git LFS pointer, not the file itself: fetch the files with `git lfs pull`, or download them again"

# The first bytes of a file, and what it is.
SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive, such as torch.save writes (a pickle, which is never opened)"),
    (b"\x80", "a pickle, which is never opened"),
    (b"GGUF", "a GGUF file of llama.cpp"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a numpy file"),
    (b"<", "a web page, perhaps of a failed download"),
    (b"{", "JSON"),
)

CONVERT = "convert it to safetensors"
# A pattern of a file's name, and what a folder is that has one in place of an adapter's files. The first match counts.
FOLDERS: tuple[tuple[str, str], ...] = (
    (r"adapter_model(-\d+-of-\d+)?\.bin", f"adapter_model.bin is a pickle and is never opened: {CONVERT}"),
    (r"adapters\.(safetensors|npz)", "the folder is an adapter of mlx-lm, whose matrices are the transposes of PEFT's"),
    (r"pytorch_lora_weights\.\w+", "the folder is a LoRA of diffusers, for a model of images"),
    (r".*\.gguf", "GGUF files of llama.cpp are not served as adapters: load the PEFT folder that they were made from"),
    (
        r".*\.distcp|pytorch_model_fsdp_\d+",
        "the folder is a distributed checkpoint of torch: save the adapter with PEFT",
    ),
    (r"global_step\d+|zero_to_fp32\.py", "the folder is a checkpoint of DeepSpeed: save the adapter with PEFT"),
    (r"adapter_\d+\.pt", f"the folder is an adapter of torchtune in a pickle, which is never opened: {CONVERT}"),
    (r"(model|pytorch_model|consolidated).*\.(safetensors|bin|pth)", "the folder is a whole model, not an adapter"),
    (r".*\.(pt|pth|bin|ckpt|pkl)", f"the folder holds a pickle, which is never opened: {CONVERT}"),
    (r".*\.safetensors", "a PEFT adapter's weights are adapter_model.safetensors, and this folder has other names"),
    (r"checkpoint-.*", "the folder holds checkpoints of a trainer, without an adapter's files in them"),
)


# A pattern that a tensor's name contains, and what its file is. The first match counts.
TENSORS: tuple[tuple[str, str], ...] = (
    (r"lora_unet_|lora_te\d?_|\bunet\.|text_encoder\.", "the file is a LoRA for a model of images"),
    (r"\.lora_(down|up)\b", "the file has the names of kohya or diffusers, for a model of images"),
    (r"\.lora_[ab]$", "the file is of mlx-lm, whose matrices are the transposes of PEFT's"),
    (r"\.lora_[ab]\.weight$", "the file is of torchtune: export it with its PEFT format"),
    (r"\.base_layer\.", "the file has weights of the base model, too: save the adapter alone, with save_pretrained"),
    (r"\b(v_head|score|classifier)\b", "it has a head for values or classes, which is not served"),
    (r"linear_(qkv|proj|fc1|fc2)\b|_adapter\.linear_(in|out)", "the file is of Megatron or NeMo: export it for PEFT"),
    (r"prompt_embeddings|prefix_", "the file is of prompt tuning, not LoRA"),
    (r"\b(hada_w\d|lokr_w\d|oft_[RS]|vera_lambda|ia3_l|boft_)", "the file is of another method of PEFT, not LoRA"),
    (r"\b(qkv_proj|gate_up_proj|query_key_value|c_attn|Wqkv|in_proj)\b", "its projections are fused otherwise"),
    (r"\b(experts|block_sparse_moe)\b", "it changes a mixture of experts"),
    (r"\b(vision|visual|audio|multi_modal)\w*\b", "it changes more than the language model of a multimodal model"),
)


def is_lfs_pointer(content: bytes) -> bool:
    return content.startswith(LFS_PREFIX)


def kind_of_content(content: bytes) -> str | None:
    """Returns what a file is that should be safetensors and is not; None for an unknown kind. content: the first bytes
    at least."""
    if content[8:9] == b"{":  # the header of safetensors, behind its length
        return None
    return next((kind for prefix, kind in SIGNATURES if content.startswith(prefix)), None)


def kind_of_folder(names: Iterable[str]) -> str | None:
    """Returns what a folder is that lacks one of an adapter's files; None if its files do not tell."""
    present = sorted(names)
    return next((kind for pattern, kind in FOLDERS if any(re.fullmatch(pattern, name) for name in present)), None)


def kind_of_tensors(names: Iterable[str], misplaced: Iterable[str]) -> str | None:
    """Returns what a file is whose tensors do not fit; None if their names do not tell. names: of all tensors.
    misplaced: those that land nowhere."""
    if not any("lora" in name.lower() for name in names):
        return "the file has no LoRA tensors: it may be a whole or merged model"
    lost = list(misplaced)
    return next((kind for pattern, kind in TENSORS if any(re.search(pattern, name) for name in lost)), None)
