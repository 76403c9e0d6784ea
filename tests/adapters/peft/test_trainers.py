"""Adapters as trainers other than PEFT leave them: served where every name is certain, else refused with the cause."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from blora.adapters import AdapterRejected, Checkpoint, TargetModule, read_checkpoint
from blora.adapters.peft.fingerprint import fingerprint

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."

Tensors = dict[str, np.ndarray]
Targets = tuple[TargetModule, ...]


def rename(folder: Path, change: Callable[[str], str]) -> Path:
    content = load((folder / WEIGHTS).read_bytes())
    (folder / WEIGHTS).write_bytes(save({change(name): tensor for name, tensor in content.items()}))
    return folder


def configure(folder: Path, **fields: Any) -> Path:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def refusal(folder: Path, targets: Targets) -> str:
    with pytest.raises(AdapterRejected) as caught:
        read_checkpoint(folder, targets)
    assert len(str(caught.value).splitlines()) <= 10
    assert len(str(caught.value)) < 2000
    return str(caught.value)


def check_same(found: Checkpoint, plain: Checkpoint) -> None:
    assert len(found.modules) == len(plain.modules)
    for module, expected in zip(found.modules, plain.modules, strict=True):
        assert (module.target, module.scaling) == (expected.target, expected.scaling)
        np.testing.assert_array_equal(module.a, expected.a)
        np.testing.assert_array_equal(module.b, expected.b)


def after(word: str, added: str) -> Callable[[str], str]:
    return lambda name: name.replace(word, word + added)


def in_layers(added: str) -> Callable[[str], str]:
    return lambda name: name.replace("layers.0.", f"layers.0.{added}").replace("layers.1.", f"layers.1.{added}")


# name -> the change of PEFT's names, and what the report says of it
RENAMINGS: dict[str, tuple[Callable[[str], str], list[str]]] = {
    "an adapter's name": (
        lambda name: name.replace(".weight", ".default.weight"),
        ["'.default' is left out of 28 tensor names"],
    ),
    "another adapter's name": (
        lambda name: name.replace(".weight", ".my-policy.weight"),
        ["'.my-policy' is left out of 28 tensor names"],
    ),
    "compiled": (after(PREFIX, "_orig_mod."), ["'_orig_mod.' is left out of 28 tensor names"]),
    "compiled after PEFT": (lambda name: f"_orig_mod.{name}", ["'_orig_mod.' is left out of 28 tensor names"]),
    "data parallel": (lambda name: f"module.{name}", ["'module.' is left out of 28 tensor names"]),
    "checkpointed": (
        in_layers("_checkpoint_wrapped_module."),
        ["'_checkpoint_wrapped_module.' is left out of 28 tensor names"],
    ),
    "FSDP": (
        lambda name: "_fsdp_wrapped_module." + in_layers("_fsdp_wrapped_module.")(name),
        ["'_fsdp_wrapped_module.' is left out of 56 tensor names"],
    ),
    "all at once": (
        lambda name: "module._orig_mod." + in_layers("_checkpoint_wrapped_module.")(name).replace("weight", "x.weight"),
        [
            "'module.' is left out of 28 tensor names",
            "'_orig_mod.' is left out of 28 tensor names",
            "'_checkpoint_wrapped_module.' is left out of 28 tensor names",
            "'.x' is left out of 28 tensor names",
        ],
    ),
    "a multimodal model": (
        lambda name: name.replace("model.layers", "model.language_model.layers"),
        ["'language_model.' is left out of 28 tensor names"],
    ),
    "an older multimodal model": (
        lambda name: name.replace("model.layers", "language_model.model.layers"),
        ["'language_model.' is left out of 28 tensor names"],
    ),
    "without PEFT's prefix": (
        lambda name: name.removeprefix(PREFIX),
        ["'base_model.model.' is put before 28 tensor names"],
    ),
    "a model without its head": (
        lambda name: name.replace("model.layers", "layers"),
        ["'model.' is put before the modules in 28 tensor names"],
    ),
    "a model in a trainer": (lambda name: f"policy.{name}", ["'policy.' is left out of 28 tensor names"]),
}


@pytest.mark.parametrize("kind", RENAMINGS)
def test_a_name_that_is_certain_is_served_and_reported(kind: str, folder: Path, targets: Targets) -> None:
    change, reported = RENAMINGS[kind]
    plain = read_checkpoint(folder, targets)
    found = read_checkpoint(rename(folder, change), targets)
    check_same(found, plain)
    assert list(found.name_changes) == reported
    assert found.tensor_names == tuple(sorted(map(change, plain.tensor_names)))
    assert not plain.name_changes


def test_patterns_refer_to_the_names_in_training(folder: Path, targets: Targets) -> None:
    """A multimodal adapter's configuration targets the language model by its path there."""
    rename(folder, lambda name: name.replace("model.layers", "language_model.model.layers"))
    configure(folder, target_modules=r"language_model\..*_proj", alpha_pattern={"^language_model.*q_proj": 2})
    found = read_checkpoint(folder, targets)
    assert len(found.modules) == len(targets)
    assert {module.scaling for module in found.modules if "q_proj" in module.target.name} == {0.5}


def test_kinds_of_parts_lose_the_adapters_name(tiny_model: Path, tmp_path: Path) -> None:
    """DoRA's vectors, tables, trained rows and biases, as the trained model's own state has them."""
    from tiny import make_adapter

    from blora.engine.model.targets import adapter_targets
    from blora.engine.model_files.base_tensors import BaseTensorFiles
    from blora.engine.model_files.read_config import load_model_config

    targets, base = adapter_targets(load_model_config(tiny_model)), BaseTensorFiles(tiny_model)
    in_memory = {"weight": "default.weight", "lora_magnitude_vector": "lora_magnitude_vector.default.weight"}
    in_memory |= {"trainable_tokens_delta": "trainable_tokens_delta.default"}
    in_memory |= {part: f"{part}.default" for part in ("lora_embedding_A", "lora_embedding_B")}

    def as_state(name: str) -> str:
        before, _, last = name.rpartition(".")
        if before.endswith("lm_head"):
            return f"{before}.modules_to_save.default.weight"
        return name if "base_layer" in name else f"{before}.{in_memory[last]}"

    kinds: list[dict[str, Any]] = [
        {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
        {"modules_to_save": ["lm_head"], "trainable_token_indices": [3, 1]},
    ]
    for seed, fields in enumerate(kinds):
        folder = make_adapter(tiny_model, tmp_path / str(seed), seed, **fields)
        plain = read_checkpoint(folder, targets, base=base)
        found = read_checkpoint(rename(folder, as_state), targets, base=base)
        check_same(found, plain)
        for module, expected in zip(found.modules, plain.modules, strict=True):
            for vector, other in ((module.gain, expected.gain), (module.rows, expected.rows)):
                assert (vector is None) == (other is None)
            if module.rows is not None and expected.rows is not None:
                np.testing.assert_array_equal(module.rows.rows, expected.rows.rows)
            np.testing.assert_array_equal(module.gain, expected.gain)


def test_two_tensors_never_become_one(folder: Path, targets: Targets) -> None:
    content = load((folder / WEIGHTS).read_bytes())
    twice = {name.replace(".weight", f".{adapter}.weight"): t for name, t in content.items() for adapter in "ab"}
    (folder / WEIGHTS).write_bytes(save(twice))
    reason = refusal(folder, targets)
    assert "several adapters: a, b" in reason and "28 tensors of the file mean the same as other ones" in reason


def lost(path: str) -> Callable[[str], str]:
    return lambda name: name.replace("model.layers", path)


FOREIGN: dict[str, tuple[Callable[[str], str], str]] = {
    "a tower": (lost("vision_tower.encoder.layers"), "more than the language model"),
    "GPT-2": (lambda name: name.replace("q_proj", "c_attn"), "fused otherwise"),
    "torchtune": (lambda name: name.replace("lora_A", "lora_a").replace("lora_B", "lora_b"), "torchtune"),
    "mlx": (lambda name: name.replace("lora_A.weight", "lora_a").replace("lora_B.weight", "lora_b"), "mlx-lm"),
    "kohya": (lambda name: name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"), "kohya"),
    "experts": (lost("model.experts.layers"), "mixture of experts"),
    "merged": (lambda name: name.replace(".lora_A", "").replace(".lora_B.weight", ".bias"), "whole or merged model"),
    "nothing known": (lost("transformer.blocks"), "of another model: adapter_config.json names"),
    "another way": (lost("transformer.layers"), "this model's names below 'transformer.', which is not known here"),
    "a whole state": (lambda name: name.replace("lora_A", "base_layer"), "has weights of the base model, too"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_names_stand_beside_the_expected_ones(kind: str, folder: Path, targets: Targets) -> None:
    change, cause = FOREIGN[kind]
    own = sorted(load((folder / WEIGHTS).read_bytes()))
    changed = [name for name in own if change(name) != name]
    reason = refusal(configure(rename(folder, change), base_model_name_or_path="someone/big"), targets)
    assert "likely cause: " in reason and cause in reason
    assert change(changed[0]) in reason and changed[0] in reason


def test_a_larger_models_adapter_is_told_by_its_layers(folder: Path, targets: Targets) -> None:
    rename(folder, lambda name: name.replace("layers.1.", "layers.31."))
    assert "layers up to 31, the model up to 1" in refusal(folder, targets)


def test_another_rank_than_the_configurations_is_told(folder: Path, targets: Targets) -> None:
    assert "another rank than adapter_config.json says" in refusal(configure(folder, r=16), targets)


def test_a_name_cannot_break_the_message(folder: Path, targets: Targets) -> None:
    reason = refusal(rename(folder, lambda name: f"\n{name}\x1b[2J" + "x" * 500), targets)
    assert "\x1b" not in reason and "\\n" in reason


def test_empty_tensors_are_told_as_zero_3(folder: Path, targets: Targets) -> None:
    content = load((folder / WEIGHTS).read_bytes())
    (folder / WEIGHTS).write_bytes(save({name: tensor.ravel()[:0] for name, tensor in content.items()}))
    assert "likely cause: 28 tensors are empty, as DeepSpeed ZeRO-3" in refusal(folder, targets)


def test_a_file_larger_than_the_engines_memory_is_not_read(folder: Path, targets: Targets) -> None:
    """Even where the configuration could belong to it."""
    tensor = np.zeros(1 << 20, np.float32)
    (folder / WEIGHTS).write_bytes(save({"a": tensor, "b": tensor}))
    configure(folder, r=1024, target_modules=["layers.0.self_attn.k_proj"])
    with pytest.raises(AdapterRejected, match="at most 1"):
        read_checkpoint(folder, targets, max_elements=100_000)


def test_a_file_of_double_precision_is_told_by_its_type(folder: Path, targets: Targets) -> None:
    content = load((folder / WEIGHTS).read_bytes())
    (folder / WEIGHTS).write_bytes(save({name: tensor.astype(np.float64) for name, tensor in content.items()}))
    assert "is of type F64; F32, F16 and BF16 are served" in refusal(folder, targets)


# Files of the folder.


def shards(folder: Path, with_index: bool, number: int = 3) -> list[Path]:
    content = load((folder / WEIGHTS).read_bytes())
    (folder / WEIGHTS).unlink()
    files = [folder / f"adapter_model-{i + 1:05}-of-{number:05}.safetensors" for i in range(number)]
    for i, file in enumerate(files):
        file.write_bytes(save({name: content[name] for name in sorted(content)[i::number]}))
    if with_index:
        names = {name: files[i % number].name for i, name in enumerate(sorted(content))}
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": names}))
    return files


@pytest.mark.parametrize("with_index", [False, True])
def test_shards_are_one_adapter(with_index: bool, folder: Path, targets: Targets) -> None:
    plain = read_checkpoint(folder, targets)
    files = shards(folder, with_index)
    found = read_checkpoint(folder, targets)
    check_same(found, plain)
    content = load(files[2].read_bytes())
    files[2].write_bytes(save({name: tensor + np.float32(1) for name, tensor in content.items()}))
    assert read_checkpoint(folder, targets).digest != found.digest
    assert fingerprint(folder)
    files[1].unlink()
    assert not fingerprint(folder)
    assert "adapter_model-00002-of-00003.safetensors" in refusal(folder, targets)


def test_a_tensor_in_two_shards_is_refused(folder: Path, targets: Targets) -> None:
    files = shards(folder, with_index=False, number=2)
    shutil.copy(files[0], files[1])
    assert "is in two files" in refusal(folder, targets)


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": {"a": "../../x.safetensors"}}', '{"weight_map": {}}'])
def test_an_odd_index_is_refused(content: str, folder: Path, targets: Targets) -> None:
    shards(folder, with_index=False)
    (folder / f"{WEIGHTS}.index.json").write_text(content)
    assert "adapter_model.safetensors.index.json" in refusal(folder, targets)


def test_shards_lie_inside_the_roots(folder: Path, tmp_path: Path, targets: Targets) -> None:
    files = shards(folder, with_index=False)
    files[1].rename(tmp_path / "outside")
    files[1].symlink_to(tmp_path / "outside")
    with pytest.raises(AdapterRejected, match="lies outside the allowed folders"):
        read_checkpoint(folder, targets, [folder])


def test_a_single_checkpoint_is_served_and_several_are_named(folder: Path, tmp_path: Path, targets: Targets) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder, run / "checkpoint-500")
    found = read_checkpoint(run, targets)
    check_same(found, read_checkpoint(folder, targets))
    assert found.warnings == ("the adapter is that of the folder's only checkpoint, checkpoint-500",)
    assert found.path == str(run)
    before = fingerprint(run)
    (run / "checkpoint-500" / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    assert before and fingerprint(run) != before
    shutil.copytree(folder, run / "checkpoint-1000")
    assert "load one of checkpoint-500, checkpoint-1000" in refusal(run, targets)


def test_a_checkpoint_that_is_a_link_out_of_the_roots_is_refused(
    folder: Path, tmp_path: Path, targets: Targets
) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/checkpoint-1").symlink_to(folder)
    with pytest.raises(AdapterRejected, match="lies outside the allowed folders"):
        read_checkpoint(tmp_path / "root", targets, [tmp_path / "root"])


def lfs(folder: Path, name: str = WEIGHTS) -> None:
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")


def only(name: str, config: bool = True) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / name)
        if not config:
            (folder / CONFIG).unlink()

    return change


def mlx(folder: Path) -> None:
    (folder / CONFIG).write_text(
        json.dumps({"fine_tune_type": "lora", "num_layers": 16, "lora_parameters": {"rank": 8}})
    )


ODD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "LFS": (lfs, f"{WEIGHTS} is a Git LFS pointer"),
    "LFS tokenizer": (lambda f: lfs(f, "tokenizer.json"), "tokenizer.json is a Git LFS pointer"),
    "bin": (only("adapter_model.bin"), "adapter_model.bin is a pickle and is never opened: convert it to safetensors"),
    "bins": (only("adapter_model-00001-of-00002.bin"), "is a pickle and is never opened"),
    "mlx": (only("adapters.safetensors"), "mlx-lm"),
    "mlx config": (mlx, "is one of mlx-lm"),
    "diffusers": (only("pytorch_lora_weights.safetensors"), "a LoRA of diffusers"),
    "model": (only("model.safetensors", config=False), "the folder is a whole model"),
    "gguf": (only("lora-f16.gguf"), "GGUF files of llama.cpp"),
    "deepspeed": (only("zero_to_fp32.py"), "checkpoint of DeepSpeed"),
    "fsdp": (only("__0_0.distcp"), "distributed checkpoint of torch"),
    "other name": (only("lora.safetensors"), "this folder has other names"),
    "web page": (lambda f: (f / WEIGHTS).write_bytes(b"<!DOCTYPE html>" + b" " * 99), "it is a web page"),
    "gguf inside": (lambda f: (f / WEIGHTS).write_bytes(b"GGUF" + b"\xff" * 99), "it is a GGUF file"),
}


@pytest.mark.parametrize("kind", ODD_FILES)
def test_a_file_that_is_something_else_is_named(kind: str, folder: Path, targets: Targets) -> None:
    change, reason = ODD_FILES[kind]
    change(folder)
    assert reason in refusal(folder, targets)


# Fields of the configuration.


def test_fields_that_peft_does_not_know_are_left_out_and_listed(folder: Path, targets: Targets) -> None:
    plain = read_checkpoint(folder, targets)
    configure(folder, lora_dtype="bfloat16", unsloth_fixed=True, lorap_lr_ratio=0, peft_version="0.18.0")
    found = read_checkpoint(folder, targets)
    check_same(found, plain)
    assert found.unknown_fields == ("lora_dtype", "unsloth_fixed", "lorap_lr_ratio")
    assert not plain.unknown_fields


@pytest.mark.parametrize("version", ["0.21.3", "0.22.0.dev0", "1.0", "main", 7])
def test_a_newer_peft_may_know_more_fields(version: Any, folder: Path, targets: Targets) -> None:
    configure(folder, peft_version=version)
    assert not read_checkpoint(folder, targets).unknown_fields
    reason = refusal(configure(folder, lora_dtype="bfloat16"), targets)
    assert "lora_dtype: 'bfloat16' is not served" in reason and "the newest known here is 0.21.2" in reason


@pytest.mark.parametrize("version", ["0.21.2", "0.5.0", "0.21.1.dev0", None])
def test_an_older_peft_knows_no_more_fields(version: Any, folder: Path, targets: Targets) -> None:
    configure(folder, peft_version=version, lora_dtype="bfloat16")
    assert read_checkpoint(folder, targets).unknown_fields == ("lora_dtype",)


@pytest.mark.parametrize("field", ["layer_replication", "target_parameters", "use_qalora", "invocation_string"])
def test_what_peft_knows_and_blora_does_not_serve_is_refused(field: str, folder: Path, targets: Targets) -> None:
    assert f"{field}: [[0, 1]] is not served" in refusal(configure(folder, **{field: [[0, 1]]}), targets)
