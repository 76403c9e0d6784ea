"""read_checkpoint: PEFT's folders are read as PEFT reads them; all others are refused quickly, with the reason."""

import hashlib
import itertools
import json
import os
import pickle
import shutil
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.numpy import load, save
from transformers import LlamaForCausalLM

from blora.adapters import AdapterRejected, AdapterTooLarge, Checkpoint, TargetModule, read_checkpoint
from blora.adapters.peft import checkpoint as reader
from blora.adapters.peft.fingerprint import fingerprint

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
A, B = f"{MODULE}.lora_A.weight", f"{MODULE}.lora_B.weight"  # [4, 32] and [32, 4]
MAX_SECONDS = 2

Spoiler = Callable[[Path], object]
Tensors = dict[str, Any]
Targets = tuple[TargetModule, ...]


def config(**fields: Any) -> Spoiler:
    """Overwrites fields of the configuration."""

    def spoil(folder: Path) -> None:
        path = folder / CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return spoil


def config_bytes(content: bytes) -> Spoiler:
    return lambda folder: (folder / CONFIG).write_bytes(content)


def config_text(old: str, new: str) -> Spoiler:
    def spoil(folder: Path) -> None:
        text = (folder / CONFIG).read_text()
        assert old in text
        (folder / CONFIG).write_text(text.replace(old, new))

    return spoil


def tensors(edit: Callable[[Tensors], object]) -> Spoiler:
    def spoil(folder: Path) -> None:
        path = folder / WEIGHTS
        content = load(path.read_bytes())
        edit(content)
        path.write_bytes(save(content))

    return spoil


def replaced(**changes: Callable[[Tensors], Any]) -> Spoiler:
    """Replaces A or B. a, b: functions from all tensors to the new value."""
    names = {"a": A, "b": B}
    return tensors(lambda content: content.update({names[part]: make(content) for part, make in changes.items()}))


def with_cell(value: float) -> Spoiler:
    def edit(content: Tensors) -> None:
        content[B] = content[B].copy()
        content[B][7, 2] = value

    return tensors(edit)


def weights(edit: Callable[[bytes], bytes]) -> Spoiler:
    return lambda folder: (folder / WEIGHTS).write_bytes(edit((folder / WEIGHTS).read_bytes()))


def content(content: bytes) -> Spoiler:
    return weights(lambda _: content)


def one_byte_short(content: bytes) -> bytes:
    return (int.from_bytes(content[:8], "little") - 1).to_bytes(8, "little") + content[8:]


def with_length(length: int) -> Spoiler:
    return weights(lambda content: length.to_bytes(8, "little") + content[8:])


def header(edit: Callable[[dict[str, Any]], object]) -> Spoiler:
    """Edits the header's JSON and leaves the data as they are."""

    def change(content: bytes) -> bytes:
        (length,) = struct.unpack("<Q", content[:8])
        entries = json.loads(content[8 : 8 + length])
        edit(entries)
        return with_header(json.dumps(entries).encode()) + content[8 + length :]

    return weights(change)


def with_header(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def entry(**fields: Any) -> Spoiler:
    """Overwrites fields of A's entry in the header."""
    return header(lambda entries: entries[A].update(fields))


def shifted(begin: int, end: int) -> Spoiler:
    """Moves the bounds of A's data."""

    def edit(entries: dict[str, Any]) -> None:
        first, last = entries[A]["data_offsets"]
        entries[A]["data_offsets"] = [first + begin, last + end]

    return header(edit)


def with_doubled_name(content: bytes) -> bytes:
    """Adds a second entry of A's name, with data of its own."""
    (length,) = struct.unpack("<Q", content[:8])
    text, data = content[8 : 8 + length].rstrip(), content[8 + length :]
    second = {"dtype": "F32", "shape": [4, 32], "data_offsets": [len(data), len(data) + 512]}
    return with_header(text[:-1] + f",{json.dumps(A)}:{json.dumps(second)}}}".encode()) + data + bytes(512)


def with_long_header(content: bytes) -> bytes:
    """Adds spaces behind the header of a good file, which safetensors would accept."""
    (length,) = struct.unpack("<Q", content[:8])
    return with_header(content[8 : 8 + length].ljust((1 << 20) + 8)) + content[8 + length :]


def many_tensors(folder: Path) -> None:
    entries = {f"t{index}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for index in range(200_000)}
    (folder / WEIGHTS).write_bytes(with_header(json.dumps(entries).encode()))


def replaced_by(make: Callable[[Path], object]) -> Spoiler:
    """Replaces the weights file by something else."""

    def spoil(folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        make(folder / WEIGHTS)

    return spoil


def without_weights(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x" * 100)


def config_as_fifo(folder: Path) -> None:
    (folder / CONFIG).unlink()
    os.mkfifo(folder / CONFIG)


def all_removed(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


def linked_in_a_loop(path: Path) -> None:
    path.symlink_to(path.name)


TARGET_ALL = r".*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"

# name of a corruption -> the change of a good folder, and a text that the refusal has to contain
CORRUPTIONS: dict[str, tuple[Spoiler, str]] = {
    # configuration: the file
    "no config": (lambda folder: (folder / CONFIG).unlink(), f"{CONFIG} cannot be read: No such file"),
    "empty config": (config_bytes(b""), "not valid JSON"),
    "config not JSON": (config_bytes(b"{r: 8}"), "not valid JSON"),
    "config not UTF-8": (config_bytes(b'{"r": "\xff\xfe\xfd"}'), "not valid JSON"),
    "config a list": (config_bytes(b"[]"), "not a JSON object"),
    "config a number": (config_bytes(b"1"), "not a JSON object"),
    "config cut in half": (lambda folder: os.truncate(folder / CONFIG, 200), "not valid JSON"),
    "config deep": (config_bytes(b"[" * 60_000), "not valid JSON"),
    "config deep object": (config_bytes(b'{"a":' * 12_000), "not valid JSON"),
    "config huge": (config_bytes(b" " * 70_000), "at most 65536 are read"),
    "config very huge": (lambda folder: os.truncate(folder / CONFIG, 10 << 20), "at most 65536 are read"),
    "config duplicate key": (config_text('"r": 4', '"r": 4, "r": 4'), "twice"),
    "config duplicate nested key": (config_text('"rank_pattern": {}', '"rank_pattern": {"a": 1, "a": 2}'), "twice"),
    "config NaN": (config_text('"lora_alpha": 8', '"lora_alpha": NaN'), "NaN is not a JSON number"),
    "config Infinity": (config_text('"lora_alpha": 8', '"lora_alpha": Infinity'), "Infinity is not a JSON number"),
    "config -Infinity": (config_text('"lora_alpha": 8', '"lora_alpha": -Infinity'), "-Infinity is not a JSON number"),
    "config number of 5000 digits": (config_text('"r": 4', '"r": ' + "4" * 5000), "not valid JSON"),
    # configuration: rank and scaling
    "r 0": (config(r=0), "r: 0 is not an integer from 1 to"),
    "r -1": (config(r=-1), "r: -1 is not an integer"),
    "r 1.5": (config(r=1.5), "r: 1.5 is not an integer"),
    "r 4.0": (config(r=4.0), "r: 4.0 is not an integer"),
    "r text": (config(r="8"), "r: '8' is not an integer"),
    "r true": (config(r=True), "r: True is not an integer"),
    "r null": (config(r=None), "r: None is not an integer"),
    "r 10**9": (config(r=10**9), "r: 1000000000 is not an integer"),
    "r a list": (config(r=[4]), "r: [4] is not an integer"),
    "alpha 1e400": (config_text('"lora_alpha": 8', '"lora_alpha": 1e400'), "lora_alpha: inf is not a finite number"),
    "alpha 1e308": (config(lora_alpha=1e308), "lora_alpha: 1e+308 is not a finite number"),
    "alpha text": (config(lora_alpha="x"), "lora_alpha: 'x' is not a finite number"),
    "alpha null": (config(lora_alpha=None), "lora_alpha: None is not a finite number"),
    "alpha true": (config(lora_alpha=True), "lora_alpha: True is not a finite number"),
    "rslora 1": (config(use_rslora=1), "use_rslora: 1 is not a boolean"),
    "rslora text": (config(use_rslora="yes"), "use_rslora: 'yes' is not a boolean"),
    "rank pattern 0": (config(rank_pattern={"q_proj": 0}), "rank_pattern[q_proj]: 0 is not an integer"),
    "rank pattern a list": (config(rank_pattern=["q_proj"]), "rank_pattern: ['q_proj'] is not an object"),
    "alpha pattern text": (config(alpha_pattern={"q_proj": "2"}), "alpha_pattern[q_proj]: '2' is not a finite number"),
    "rank differs by pattern": (config(rank_pattern={"q_proj": 3}), "q_proj.lora_A has shape [4, 32]"),
    # configuration: values that are not served
    "no peft_type": (config(peft_type=None), "peft_type: None is not 'LORA'"),
    "unknown peft_type": (config(peft_type="IA3"), "peft_type: 'IA3' is not 'LORA'"),
    "peft_type a list": (config(peft_type=["LORA"]), "peft_type: ['LORA'] is not 'LORA'"),
    "task_type": (config(task_type="SEQ_CLS"), "task_type: 'SEQ_CLS'"),
    "dora without magnitudes": (config(use_dora=True), "14 expected tensors are missing: "),
    "dora with lora_bias": (config(use_dora=True, lora_bias=True), "lora_bias: is not defined together with use_dora"),
    "unknown to an old PEFT": (config(something_new=0, peft_version="0.22.0"), "something_new: 0 is not served: PEFT"),
    "modules_to_save": (config(modules_to_save=["mlp"]), "modules_to_save: 'mlp' is not served"),
    "bias unknown": (config(bias="some"), "bias: 'some' is not one of none, all, lora_only"),
    "bias that nobody trained": (
        tensors(lambda t: t.update({f"{MODULE}.bias": t[B][:, 0].copy()})),
        "q_proj.bias lands on no module",
    ),
    "lora_bias": (config(lora_bias=True), "mlp.down_proj.lora_B.bias, "),
    "alora without tokens": (config(alora_invocation_tokens=[]), "alora_invocation_tokens: [] is not a list of 1 to"),
    "alora of a text": (config(alora_invocation_tokens="ab"), "alora_invocation_tokens: 'ab' is not a list"),
    "alora of negative tokens": (config(alora_invocation_tokens=[1, -1]), "alora_invocation_tokens: [1, -1] is not"),
    "alora of too many": (config(alora_invocation_tokens=[1] * 257), "is not a list of 1 to 256 token ids"),
    "alora with dora": (
        config(alora_invocation_tokens=[1], use_dora=True),
        "use_dora: is not defined together with alora",
    ),
    "alora with biases": (
        config(alora_invocation_tokens=[1], bias="all"),
        "bias: 'all' changes rows before the invocation",
    ),
    "field that is not served": (config(target_parameters=["w"]), "target_parameters: ['w'] is not served"),
    "pissa": (config(init_lora_weights="pissa"), "init_lora_weights: 'pissa' changes the base weights"),
    "pissa with steps": (config(init_lora_weights="pissa_niter_4"), "init_lora_weights"),
    "olora": (config(init_lora_weights="olora"), "init_lora_weights: 'olora' changes the base weights"),
    # configuration: modules and patterns
    "no target_modules": (config(target_modules=None), "target_modules: names no module"),
    "empty target_modules": (config(target_modules=[]), "target_modules: names no module"),
    "target_modules a number": (config(target_modules=3), "target_modules: 3 is neither a string nor a list"),
    "target_modules of numbers": (config(target_modules=[3]), "neither a string nor a list of strings"),
    "target_modules an object": (config(target_modules={"q_proj": 1}), "neither a string nor a list of strings"),
    "long regex": (config(target_modules="(a+)+" * 200 + TARGET_ALL), "characters, at most 512"),
    "invalid regex": (config(target_modules="(q_proj"), "is not a regular expression"),
    "invalid exclude": (config(exclude_modules="*"), "exclude_modules: '*' is not a regular expression"),
    "invalid rank pattern": (config(rank_pattern={"[": 4}), "rank_pattern: '[' is not a regular expression"),
    "long alpha pattern": (config(alpha_pattern={"a" * 600: 4}), "a pattern of 600 characters"),
    "rank pattern without an end": (
        config(rank_pattern={"([a-z._0-9]+)+!": 4}),
        "rank_pattern: '([a-z._0-9]+)+!' takes too long to match",
    ),
    "alpha pattern without an end": (config(alpha_pattern={".*" * 30 + "!": 4}), "takes too long to match"),
    "target modules without an end": (config(target_modules="([a-z._0-9]+)+!"), "target_modules: '([a-z._0-9]+)+!'"),
    "exclude modules without an end": (config(exclude_modules="([a-z._0-9]+)+!"), "exclude_modules: '([a-z._0-9]+)+!'"),
    "layers pattern without an end": (
        config(layers_to_transform=[0], layers_pattern=["([a-z._0-9]+)+!"]),
        "layers_pattern: '([a-z._0-9]+)+!' takes too long to match",
    ),
    "pattern with a global flag": (config(rank_pattern={"(?i)Q_PROJ": 4}), "is not a regular expression"),
    "layers a text": (config(layers_to_transform="0"), "layers_to_transform: '0' is neither an index"),
    "layers negative": (config(layers_to_transform=[-1]), "layers_to_transform: [-1] is neither an index"),
    "layers true": (config(layers_to_transform=True), "layers_to_transform: True is neither an index"),
    "layers pattern invalid in a list": (
        lambda folder: (
            config(layers_to_transform=[0], layers_pattern=["("])(folder),
            tensors(lambda content: [content.pop(name) for name in list(content) if "layers.1" in name])(folder),
        ),
        "layers_pattern: '(' is not a regular expression",
    ),
    "layers pattern with a group": (
        lambda folder: (
            config(layers_to_transform=[0], layers_pattern=["(layers)"])(folder),
            tensors(lambda t: (t.pop(A), t.pop(B)))(folder),
        ),
        f"tensor {B} is missing",
    ),
    # weights: the file
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS} cannot be read: No such file"),
    "only .bin": (without_weights, "adapter_model.bin is a pickle and is never opened"),
    "empty file": (content(b""), "no valid safetensors header"),
    "7 bytes": (weights(lambda content: content[:7]), "no valid safetensors header"),
    "8 bytes": (weights(lambda content: content[:8]), "no valid safetensors header"),
    "header length 0": (with_length(0), "no valid safetensors header"),
    "header length 1": (with_length(1), "no valid safetensors header"),
    "header length 2**40": (with_length(1 << 40), "no valid safetensors header"),
    "header length 2**63": (with_length(1 << 63), "no valid safetensors header"),
    "header length 2**64-1": (with_length((1 << 64) - 1), "no valid safetensors header"),
    "header longer than is parsed": (weights(with_long_header), "no valid safetensors header of at most 1048576 bytes"),
    "header one byte short": (weights(one_byte_short), "not a valid safetensors file"),
    "header not JSON": (content(with_header(b"x" * 64)), "not a valid safetensors file"),
    "header not an object": (content(with_header(b"[]" + b" " * 62)), "not a valid safetensors file"),
    "header not UTF-8": (content(with_header(b'{"\xff\xff": 1}')), "not a valid safetensors file"),
    "header deep": (content(with_header(b'{"a":' * 100_000)), "not a valid safetensors file"),
    "200 000 tensors": (many_tensors, "bytes, at most"),
    "trailing bytes": (weights(lambda content: content + b"\0" * 8), "not a valid safetensors file"),
    "cut by one byte": (weights(lambda content: content[:-1]), "not a valid safetensors file"),
    "cut in half": (weights(lambda content: content[: len(content) // 2]), "not a valid safetensors file"),
    "pickle renamed": (content(pickle.dumps({"a": [1.0] * 100})), "no valid safetensors header"),
    "zip renamed": (replaced_by(zipped), "no valid safetensors header"),
    "zeros": (content(bytes(4096)), "no valid safetensors header"),
    # weights: the entries
    "overlap": (shifted(-4, -4), "not a valid safetensors file"),
    "hole": (shifted(4, 4), "not a valid safetensors file"),
    "offsets reversed": (entry(data_offsets=[512, 0]), "not a valid safetensors file"),
    "offsets past the end": (entry(data_offsets=[0, 1 << 40]), "not a valid safetensors file"),
    "offsets negative": (entry(data_offsets=[-512, 0]), "not a valid safetensors file"),
    "negative shape": (entry(shape=[-4, -32]), "not a valid safetensors file"),
    "huge shape": (entry(shape=[1 << 62, 1 << 62]), "not a valid safetensors file"),
    "float shape": (entry(shape=[4.0, 32.0]), "not a valid safetensors file"),
    "shape of other size": (entry(shape=[4, 33]), "not a valid safetensors file"),
    "unknown dtype": (entry(dtype="F33"), "not a valid safetensors file"),
    "doubled name": (weights(with_doubled_name), "not a valid safetensors file"),
    "I64": (replaced(a=lambda t: t[A].astype(np.int64)), f"tensor {A} is of type I64"),
    "F64": (replaced(a=lambda t: t[A].astype(np.float64)), f"tensor {A} is of type F64"),
    "BOOL": (replaced(a=lambda t: t[A] > 0), f"tensor {A} is of type BOOL"),
    "U8": (replaced(a=lambda t: t[A].astype(np.uint8)), f"tensor {A} is of type U8"),
    "F8": (entry(dtype="F8_E4M3", shape=[16, 32]), f"tensor {A} is of type F8_E4M3"),
    # weights: tensors that do not fit
    "swapped A and B": (replaced(a=lambda t: t[B].copy(), b=lambda t: t[A].copy()), "q_proj.lora_A has shape [32, 4]"),
    "transposed A": (replaced(a=lambda t: t[A].T.copy()), "q_proj.lora_A has shape [32, 4]"),
    "transposed B": (replaced(b=lambda t: t[B].T.copy()), "q_proj.lora_B has shape [4, 32]"),
    "one dimension": (replaced(a=lambda t: t[A].ravel()), "q_proj.lora_A has shape [128]"),
    "three dimensions": (replaced(a=lambda t: t[A][None]), "q_proj.lora_A has shape [1, 4, 32]"),
    "scalar": (replaced(a=lambda _: np.ones((), np.float32)), "q_proj.lora_A has shape []"),
    "zero-size A": (replaced(a=lambda t: t[A][:0]), "q_proj.lora_A has shape [0, 32]"),
    "zero-size both": (replaced(a=lambda t: t[A][:0], b=lambda t: t[B][:, :0].copy()), "has shape [0, 32]"),
    "zero-size extra": (
        tensors(lambda t: t.update({"x": np.zeros((0, 4), np.float32)})),
        "tensor x lands on no module",
    ),
    "rank is not the config's": (config(r=5), "model and rank ask for [5, 32]"),
    "A and B of unequal rank": (replaced(a=lambda t: t[A][:3].copy()), "q_proj.lora_A has shape [3, 32]"),
    "missing A": (tensors(lambda t: t.pop(A)), f"tensor {A} is missing"),
    "missing B": (tensors(lambda t: t.pop(B)), f"tensor {B} is missing"),
    "missing module": (tensors(lambda t: (t.pop(A), t.pop(B))), f"tensor {A} is missing\n  tensor {B} is missing"),
    "missing module of a regex": (
        lambda folder: (config(target_modules=TARGET_ALL)(folder), tensors(lambda t: (t.pop(A), t.pop(B)))(folder)),
        f"tensor {B} is missing",
    ),
    "extra tensor": (tensors(lambda t: t.update({"x": np.ones(1, np.float32)})), "tensor x lands on no module"),
    "base weight": (
        tensors(lambda t: t.update({f"{MODULE}.base_layer.weight": np.ones((32, 32), np.float32)})),
        "q_proj.base_layer.weight lands on no module",
    ),
    "layer that the model lacks": (
        tensors(lambda t: t.update({name.replace("layers.1", "layers.2"): t[name] for name in list(t)})),
        "the adapter has layers up to 2, the model up to 1",
    ),
    "no tensor at all": (tensors(lambda t: t.clear()), "the file has no tensors"),
    "zero effective modules": (
        lambda folder: (config(target_modules=["c_attn"])(folder), tensors(lambda t: t.clear())(folder)),
        "no tensor lands on a module",
    ),
    "NaN in one cell": (with_cell(float("nan")), "q_proj.lora_B holds values that are not finite"),
    "inf in one cell": (with_cell(float("inf")), "q_proj.lora_B holds values that are not finite"),
    "-inf in one cell": (with_cell(float("-inf")), "q_proj.lora_B holds values that are not finite"),
    "1e38 in one cell": (with_cell(1e38), "q_proj.lora_B holds values that are not finite"),
    "NaN in float16": (
        replaced(a=lambda _: np.full((4, 32), np.nan, np.float16)),
        "q_proj.lora_A holds values that are not finite",
    ),
    # the file system
    "no folder": (all_removed, "cannot be read: No such file"),
    "weights a folder": (replaced_by(Path.mkdir), f"{WEIGHTS} cannot be read: Is a directory"),
    "weights a FIFO": (replaced_by(os.mkfifo), f"{WEIGHTS} is not a regular file"),
    "weights a device": (replaced_by(lambda path: path.symlink_to("/dev/zero")), f"{WEIGHTS} is not a regular file"),
    "weights linked in a loop": (replaced_by(linked_in_a_loop), f"{WEIGHTS} cannot be read"),
    "weights that give an I/O error": (
        replaced_by(lambda path: path.symlink_to("/proc/self/mem")),
        f"{WEIGHTS} cannot be read",
    ),
    "weights a dangling link": (replaced_by(lambda path: path.symlink_to("gone")), f"{WEIGHTS} cannot be read"),
    "config a FIFO": (
        config_as_fifo,
        f"{CONFIG} is not a regular file",
    ),
}


def refusal(folder: Path, targets: Targets, roots: Sequence[Path] | None = None) -> str:
    start = time.process_time()
    with pytest.raises(AdapterRejected) as caught:
        read_checkpoint(folder, targets, roots)
    assert time.process_time() - start < MAX_SECONDS
    assert caught.value.problems
    return str(caught.value)


# A pattern without an end is searched for 0.4 s.
KINDS = [pytest.param(kind, marks=[pytest.mark.slow] if "without an end" in kind else []) for kind in CORRUPTIONS]


@pytest.mark.parametrize("kind", KINDS)
def test_a_spoilt_adapter_is_refused_with_the_reason(kind: str, folder: Path, targets: Targets) -> None:
    spoil, reason = CORRUPTIONS[kind]
    spoil(folder)
    assert reason in refusal(folder, targets)


def test_what_has_no_room_is_refused_before_its_weights_are_read(folder: Path, targets: Targets) -> None:
    num_elements = sum(module.a.size + module.b.size for module in read_checkpoint(folder, targets).modules)
    assert read_checkpoint(folder, targets, max_elements=num_elements).modules
    (folder / WEIGHTS).unlink()
    with pytest.raises(AdapterTooLarge, match=f"ask for {num_elements} weights, the engine's memory holds 100"):
        read_checkpoint(folder, targets, max_elements=100)


def test_problems_are_always_listed_in_the_same_order(folder: Path, targets: Targets) -> None:
    spoil, _ = CORRUPTIONS["layer that the model lacks"]
    spoil(folder)
    assert len({refusal(folder, targets) for _ in range(5)}) == 1


@pytest.mark.parametrize(
    "path", ["with\0nul", "x" * 5000, "lone\ud800surrogate", "a/" * 3000], ids=lambda path: path[:5]
)
def test_an_impossible_path_is_refused(path: str, targets: Targets) -> None:
    assert "cannot be read" in refusal(Path(path), targets)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file_is_refused(folder: Path, targets: Targets) -> None:
    (folder / WEIGHTS).chmod(0)
    assert "Permission denied" in refusal(folder, targets)


# Roots.


def test_a_folder_inside_a_root_is_read(folder: Path, tmp_path: Path, targets: Targets) -> None:
    assert read_checkpoint(folder, targets, [Path("/nowhere"), tmp_path]).modules


def test_a_folder_outside_every_root_is_refused(folder: Path, tmp_path: Path, targets: Targets) -> None:
    (tmp_path / "root").mkdir()
    assert "outside the allowed folders" in refusal(folder, targets, [tmp_path / "root"])
    assert "outside the allowed folders" in refusal(folder, targets, [])


@pytest.mark.parametrize("name", ["folder", "file", "missing"])
def test_nothing_is_told_of_what_lies_outside_the_roots(name: str, tmp_path: Path, targets: Targets) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/adapter_model.bin").touch()
    (tmp_path / "file").touch()
    for path in (tmp_path / name, tmp_path / "root/.." / name):
        reason = refusal(path, targets, [tmp_path / "root"])
        assert reason == f"adapter '{path}' is refused: {CONFIG} lies outside the allowed folders"


def test_a_sibling_whose_name_begins_like_the_root_is_refused(folder: Path, tmp_path: Path, targets: Targets) -> None:
    assert "outside the allowed folders" in refusal(folder, targets, [tmp_path / "adapt"])


def test_dots_do_not_lead_out_of_a_root(folder: Path, tmp_path: Path, targets: Targets) -> None:
    (tmp_path / "root").mkdir()
    path = tmp_path / "root" / ".." / folder.name
    assert "outside the allowed folders" in refusal(path, targets, [tmp_path / "root"])


def test_a_linked_folder_outside_the_roots_is_refused(folder: Path, tmp_path: Path, targets: Targets) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/link").symlink_to(folder)
    assert "outside the allowed folders" in refusal(tmp_path / "root/link", targets, [tmp_path / "root"])


def test_a_folder_that_becomes_a_link_after_it_was_checked_is_refused(
    folder: Path, tmp_path: Path, targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = shutil.copytree(folder, tmp_path / "root" / "adapter")
    plain_open = os.open

    def swap_and_open(path: str, flags: int) -> int:
        if not inside.is_symlink():
            inside.rename(tmp_path / "moved")
            inside.symlink_to(folder)
        return plain_open(path, flags)

    monkeypatch.setattr(os, "open", swap_and_open)
    assert "outside the allowed folders" in refusal(inside, targets, [tmp_path / "root"])


REPOSITORY, REVISION = "models--org--a", "1" * 40


def make_repository(hub: Path, name: str, source: Path) -> Path:
    """A repository of the hub's cache: the files lie in `blobs` under their digests, the snapshot holds links. Returns
    the snapshot."""
    snapshot, blobs = hub / name / "snapshots" / REVISION, hub / name / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in source.iterdir():
        blob = shutil.copyfile(file, blobs / hashlib.sha256(file.read_bytes()).hexdigest())
        (snapshot / file.name).symlink_to(Path("../..") / "blobs" / blob.name)
    return snapshot


@pytest.mark.parametrize("root", ["", REPOSITORY, f"{REPOSITORY}/snapshots", f"{REPOSITORY}/snapshots/{REVISION}"])
def test_a_root_in_the_hubs_cache_reaches_the_files_behind_its_links(
    root: str, folder: Path, tmp_path: Path, targets: Targets
) -> None:
    snapshot = make_repository(tmp_path / "hub", REPOSITORY, folder)
    digest = read_checkpoint(folder, targets).digest
    assert read_checkpoint(snapshot, targets, [tmp_path / "hub" / root]).digest == digest


def test_a_root_in_the_hubs_cache_reaches_no_other_files(folder: Path, tmp_path: Path, targets: Targets) -> None:
    mine, other = (make_repository(tmp_path / "hub", f"models--org--{name}", folder) for name in "ab")
    blobs = mine.parents[1] / "blobs"
    shutil.copytree(folder, blobs / "adapter")
    linked = mine.parent / "linked"
    linked.mkdir()
    for file in folder.iterdir():
        (linked / file.name).symlink_to(other / file.name)
    for path in (other, blobs / "adapter", linked):
        assert "outside the allowed folders" in refusal(path, targets, [mine.parent]), path


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_linked_file_outside_the_roots_is_refused(name: str, folder: Path, tmp_path: Path, targets: Targets) -> None:
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    assert f"{name} lies outside the allowed folders" in refusal(folder, targets, [folder])


def test_links_inside_a_root_are_followed_as_the_hub_cache_needs(
    folder: Path, tmp_path: Path, targets: Targets
) -> None:
    blobs, snapshot = tmp_path / "hub/blobs", tmp_path / "hub/snapshots/main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in (CONFIG, WEIGHTS):
        (folder / name).rename(blobs / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert read_checkpoint(snapshot, targets, [tmp_path / "hub"]).modules


def test_a_root_may_itself_be_a_link(folder: Path, tmp_path: Path, targets: Targets) -> None:
    (tmp_path / "root").symlink_to(folder)
    assert read_checkpoint(folder, targets, [tmp_path / "root"]).modules


# Good adapters.


def peft_layers(model: Path, adapter: Path) -> dict[str, Any]:
    adapted = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(model), adapter)
    return {
        name.removeprefix("base_model.model."): module
        for name, module in adapted.named_modules()
        if isinstance(module, LoraLayer)
    }


def test_ranks_scalings_and_weights_are_those_of_peft(
    tiny_model: Path, tiny_adapters: dict[str, Path], targets: Targets
) -> None:
    for path in tiny_adapters.values():
        check_like_peft(read_checkpoint(path, targets), peft_layers(tiny_model, path))


def check_like_peft(checkpoint: Checkpoint, layers: dict[str, Any]) -> None:
    modules = {module.target.name: module for module in checkpoint.modules}
    assert modules.keys() == layers.keys()
    for name, layer in layers.items():
        module = modules[name]
        assert module.rank == layer.r["default"]
        assert module.scaling == pytest.approx(layer.scaling["default"], rel=1e-15)
        np.testing.assert_array_equal(module.a, layer.lora_A["default"].weight.detach().numpy())
        np.testing.assert_array_equal(module.b, layer.lora_B["default"].weight.detach().numpy())


def test_modules_come_in_the_order_of_the_targets(folder: Path, targets: Targets) -> None:
    assert [module.target for module in read_checkpoint(folder, targets).modules] == list(targets)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_every_served_type_is_widened_without_loss(dtype: str, folder: Path, targets: Targets) -> None:
    bits = np.array([0x3F800000, 0xBE990000, 0x00000000, 0x41200000] * 32, np.uint32)  # exact in bfloat16
    values = bits.view(np.float32).reshape(4, 32)
    values = values.astype(np.float16).astype(np.float32) if dtype == "F16" else values
    stored = {"F32": values, "F16": values.astype(np.float16), "BF16": (bits >> 16).astype(np.uint16).reshape(4, 32)}
    replaced(a=lambda _: stored[dtype])(folder)
    header(lambda entries: entries[A].update(dtype=dtype))(folder)
    np.testing.assert_array_equal(read_checkpoint(folder, targets).modules[0].a, values)


def test_a_zero_change_loads_with_a_warning(folder: Path, targets: Targets) -> None:
    def zero(content: Tensors) -> None:
        content.update({name: 0 * tensor for name, tensor in content.items() if "lora_B" in name})

    tensors(zero)(folder)
    (warning,) = read_checkpoint(folder, targets).warnings
    assert "change is zero" in warning


def test_an_alpha_of_zero_is_warned_of_too(folder: Path, targets: Targets) -> None:
    config(lora_alpha=0)(folder)
    assert "change is zero" in read_checkpoint(folder, targets).warnings[0]


def test_a_target_that_the_model_lacks_is_warned_of(folder: Path, targets: Targets) -> None:
    config(target_modules=[module.name.rpartition(".")[2] for module in targets[:7]] + ["c_attn"])(folder)
    assert read_checkpoint(folder, targets).warnings == (
        "target_modules names c_attn, which is no module of this model",
    )


def test_a_good_adapter_brings_no_warning(folder: Path, targets: Targets) -> None:
    assert read_checkpoint(folder, targets).warnings == ()


def read_copy(folder: Path, copy: Path, targets: Targets) -> Checkpoint:
    copy.mkdir(parents=True)
    for name in (CONFIG, WEIGHTS):
        (copy / name).write_bytes((folder / name).read_bytes())
    return read_checkpoint(copy, targets)


def test_the_digest_does_not_depend_on_the_place(folder: Path, tmp_path: Path, targets: Targets) -> None:
    first = read_checkpoint(folder, targets)
    second = read_copy(folder, tmp_path / "else" / "where", targets)
    assert first.path != second.path
    assert first.digest == second.digest


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_other_files_of_the_folder_do_not_change_the_digest(name: str, folder: Path, targets: Targets) -> None:
    digest = read_checkpoint(folder, targets).digest
    (folder / f"{name}.orig").write_text("x")
    assert read_checkpoint(folder, targets).digest == digest


@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 0.999])
def test_any_byte_of_the_weights_changes_the_digest(place: float, folder: Path, targets: Targets) -> None:
    digest = read_checkpoint(folder, targets).digest
    content = bytearray((folder / WEIGHTS).read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    at = begin + int(place * (len(content) - begin)) // 4 * 4  # the lowest byte of a float32: it stays finite
    content[at] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    assert read_checkpoint(folder, targets).digest != digest


def test_a_space_in_the_config_changes_the_digest(folder: Path, targets: Targets) -> None:
    digest = read_checkpoint(folder, targets).digest
    (folder / CONFIG).write_bytes((folder / CONFIG).read_bytes() + b" ")
    assert read_checkpoint(folder, targets).digest != digest


def test_rewriting_the_file_does_not_change_what_was_read(folder: Path, targets: Targets) -> None:
    checkpoint = read_checkpoint(folder, targets)
    before = [module.a.copy() for module in checkpoint.modules]
    with (folder / WEIGHTS).open("r+b") as file:
        file.write(b"\xff" * (folder / WEIGHTS).stat().st_size)
    for module, a in zip(checkpoint.modules, before, strict=True):
        np.testing.assert_array_equal(module.a, a)


def meanwhile(monkeypatch: pytest.MonkeyPatch, file: Path, change: Callable[[], object], times: int) -> None:
    """Has a change happen when the file has just been opened, so many times."""
    plain_fstat, left = os.fstat, [times]

    def look_and_change(descriptor: int) -> os.stat_result:
        state = plain_fstat(descriptor)
        if left[0] and os.path.samestat(state, file.stat()):
            left[0] -= 1
            change()
        return state

    monkeypatch.setattr(os, "fstat", look_and_change)


def rewrite(path: Path, content: bytes) -> None:
    """In place."""
    with path.open("r+b") as file:
        file.write(content)
        file.truncate()


def replace(path: Path, content: bytes) -> None:
    (path.parent / "new").write_bytes(content)
    (path.parent / "new").replace(path)


@pytest.mark.parametrize("times", [1, 1000])
def test_a_file_that_is_rewritten_while_it_is_read_is_read_again(
    folder: Path, targets: Targets, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """The size does not show it: the content may be half of the old weights and half of the new ones."""
    expected, content = read_checkpoint(folder, targets).digest, (folder / WEIGHTS).read_bytes()
    monkeypatch.setattr(reader, "PATIENCE", 0.1)
    meanwhile(monkeypatch, folder / WEIGHTS, lambda: rewrite(folder / WEIGHTS, content), times)
    if times == 1:
        assert read_checkpoint(folder, targets).digest == expected
    else:
        assert f"{WEIGHTS} changed while it was read" in refusal(folder, targets)


@pytest.mark.parametrize("write", [rewrite, replace])
def test_a_configuration_goes_with_the_weights_beside_it(
    folder: Path, targets: Targets, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, bytes], None]
) -> None:
    """Both files are replaced between the reads of the one and of the other."""
    old = {name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    tensors(lambda content: content.update({name: -values for name, values in content.items()}))(folder)
    config(lora_alpha=9)(folder)
    new = {name: (folder / name).read_bytes() for name in old}
    assert new[CONFIG] != old[CONFIG]
    expected = read_checkpoint(folder, targets)
    for name, content in old.items():
        write(folder / name, content)
    meanwhile(monkeypatch, folder / CONFIG, lambda: [write(folder / name, content) for name, content in new.items()], 1)
    found = read_checkpoint(folder, targets)
    assert found.digest == expected.digest and {module.scaling for module in found.modules} == {9 / 4}


@pytest.mark.parametrize("alphas", [(8, 8), (8, 9)], ids=["one configuration", "two"])
def test_saves_that_do_not_end_give_one_of_them_or_nothing(
    folder: Path, targets: Targets, monkeypatch: pytest.MonkeyPatch, alphas: tuple[int, int]
) -> None:
    """The files are replaced one after the other whenever one is opened: no moment is without a change."""
    saves, digests = [], []
    for alpha, sign in zip(alphas, (1, -1), strict=True):
        config(lora_alpha=alpha)(folder)
        tensors(lambda content, sign=sign: content.update({n: sign * v for n, v in content.items()}))(folder)  # type: ignore[misc]
        saves.append({name: (folder / name).read_bytes() for name in (CONFIG, WEIGHTS)})
        digests.append(read_checkpoint(folder, targets).digest)
    writes = itertools.cycle([(name, content) for save in saves for name, content in save.items()])
    meanwhile(monkeypatch, folder / CONFIG, lambda: replace(folder / (at := next(writes))[0], at[1]), 10**6)
    if alphas[0] == alphas[1]:
        assert read_checkpoint(folder, targets).digest in digests
    else:
        assert "changed while it was read" in refusal(folder, targets)


def test_the_fingerprint_changes_whenever_the_files_do(folder: Path, targets: Targets) -> None:
    changes: list[Callable[[], object]] = [
        lambda: rewrite(folder / WEIGHTS, (folder / WEIGHTS).read_bytes()),
        lambda: replace(folder / WEIGHTS, (folder / WEIGHTS).read_bytes()),
        lambda: replace(folder / CONFIG, (folder / CONFIG).read_bytes()),
        lambda: replace(folder / "chat_template.jinja", b"{{ messages }}"),
        lambda: (folder / "chat_template.jinja").unlink(),
    ]
    found = [read_checkpoint(folder, targets).fingerprint]
    assert found == [fingerprint(folder)]
    for change in changes:
        change()
        found.append(read_checkpoint(folder, targets).fingerprint)
    state = (folder / WEIGHTS).stat()
    rewrite(folder / WEIGHTS, (folder / WEIGHTS).read_bytes())
    os.utime(folder / WEIGHTS, ns=(state.st_atime_ns, state.st_mtime_ns))  # as `cp --preserve` leaves it
    assert len({*found, fingerprint(folder)}) == len(changes) + 2
    (folder / CONFIG).unlink()
    assert fingerprint(folder) == ""


def test_reading_takes_memory_in_proportion_to_the_file(folder: Path, targets: Targets) -> None:
    tracemalloc.start()
    try:
        read_checkpoint(folder, targets)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * (folder / WEIGHTS).stat().st_size + (1 << 20)


def test_tensors_of_a_module_that_is_not_targeted_are_refused(folder: Path, targets: Targets) -> None:
    """PEFT would leave these tensors out, so that the answers would not be those of the trained model."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": ["q_proj", "v_proj"]}))
    assert "10 modules have tensors, but the configuration does not target them" in refusal(folder, targets)
