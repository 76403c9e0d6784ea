"""AdapterReport: the result of loading a folder, good or refused, and the size of its change of the model."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from blora.adapters import AdapterRejected, AdapterReport, TargetModule, inspect_adapter, pack, read_checkpoint
from blora.adapters.report import change_norm

PAGE_BYTES = 4096
Targets = tuple[TargetModule, ...]


def inspected(folder: Path, targets: Targets, **options: object) -> AdapterReport:
    return inspect_adapter(folder, targets, "float32", PAGE_BYTES, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["r4", "r8", "pattern", "r64"])
def test_norms_are_those_of_the_whole_product(name: str, tiny_adapters: dict[str, Path], targets: Targets) -> None:
    checkpoint = read_checkpoint(tiny_adapters[name], targets)
    report = inspected(tiny_adapters[name], targets)
    products = {m.target.name: m.scaling * m.b.astype(float) @ m.a.astype(float) for m in checkpoint.modules}
    for module in report.modules:
        assert module.norm == pytest.approx(np.linalg.norm(products[module.name]), rel=1e-5)
    for layer in report.layers:
        squares = [np.sum(product**2) for key, product in products.items() if key.startswith(layer.name + ".")]
        assert layer.norm == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)


def test_a_change_that_cancels_out_is_no_error(folder: Path, targets: Targets) -> None:
    module = read_checkpoint(folder, targets).modules[0]
    module.a[:], module.b[:] = 1.0, np.resize([1.0, -1.0], module.b.shape)
    assert change_norm(module) == 0.0


def test_a_good_adapter_is_told_whole(folder: Path, targets: Targets) -> None:
    report, checkpoint = inspected(folder, targets), read_checkpoint(folder, targets)
    files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    assert not report.is_refused
    assert report.digest == checkpoint.digest and report.kind == "LoRA"
    assert [(m.name, m.rank, m.scaling) for m in report.modules] == [(t.name, 4, 2.0) for t in targets]
    assert [layer.name for layer in report.layers] == ["model.layers.0", "model.layers.1"]
    assert set(report.applied_tensors) == set(load(files[1].read_bytes())) and not report.ignored_tensors
    assert report.num_disk_bytes == sum(path.stat().st_size for path in files)
    assert report.num_pages == pack(checkpoint, "float32", PAGE_BYTES).table.num_pages
    assert report.num_host_bytes == report.num_device_bytes == report.num_pages * PAGE_BYTES


def test_the_kind_is_told(tiny_adapters: dict[str, Path], targets: Targets) -> None:
    assert inspected(tiny_adapters["r8"], targets).kind == "rsLoRA"


def test_a_refused_adapter_is_told_everything_that_is_wrong(folder: Path, targets: Targets) -> None:
    path = folder / "adapter_model.safetensors"
    content = load(path.read_bytes())
    first, *_, second = sorted(content)
    content[first] = content[first][:1].copy()
    del content[second]
    path.write_bytes(save(content | {"x": np.ones(1, np.float32)}))
    with pytest.raises(AdapterRejected) as caught:
        read_checkpoint(folder, targets)
    report = inspected(folder, targets)
    assert report.is_refused and report.problems == caught.value.problems and len(report.problems) == 3
    names = set(content) | {"x"}
    assert set(report.refused_tensors) == {first, "x"} and set(report.applied_tensors) == names - {first, "x"}
    assert (report.kind, report.num_pages, len(report.modules)) == ("LoRA", 0, len(targets) - 2)
    assert {module.rank for module in report.modules} == {4}


def test_a_broken_config_lists_its_fields(folder: Path, targets: Targets) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 0, "lora_alpha": "x"}))
    assert len(inspected(folder, targets).problems) == 2


def test_what_lies_outside_the_roots_is_not_told(folder: Path, tmp_path: Path, targets: Targets) -> None:
    report = inspected(folder, targets, roots=[tmp_path / "elsewhere"])
    assert report.problems == ("adapter_config.json lies outside the allowed folders",)


def test_an_adapter_whose_pieces_fit_no_page_is_refused(folder: Path, targets: Targets) -> None:
    report = inspect_adapter(folder, targets, "float32", 64)
    assert "does not fit into a page of 64" in report.problems[0]
