"""Random adapters are real PEFT folders: they load, they change answers, and they are made once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from blora.bench.random_adapters import ALL_MODULES, make_adapters
from blora.engine import LLM, SamplingParams


def test_they_load_and_each_changes_the_answer(make_llm: Callable[..., LLM], tiny_model: Path, tmp_path: Path) -> None:
    folders = make_adapters(tiny_model, tmp_path, 3, [4, 7], ["q_proj", "down_proj"])
    llm = make_llm(adapters={folder.name: folder for folder in folders})
    infos = llm.list_adapters()
    assert [info.ranks for info in infos] == [(4,), (7,), (4,)]
    assert all(set(info.modules) == {"q_proj", "down_proj"} and not info.warnings for info in infos)
    sampling = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
    names = [None, *(folder.name for folder in folders)]
    outputs = llm.generate(["some prompt"] * 4, sampling, lora_request=names, use_tqdm=False)
    assert len({output.outputs[0].cumulative_logprob for output in outputs}) == 4


def test_peft_reads_them(tiny_model: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    (folder,) = make_adapters(tiny_model, tmp_path, 1, [4], ALL_MODULES)
    adapted = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tiny_model), folder)
    values = [parameter for name, parameter in adapted.named_parameters() if "lora_" in name]
    assert len(values) == 2 * 7 * 2
    assert all(value.abs().max() > 0 for value in values)


def test_what_is_there_is_left_alone_and_what_differs_is_made_again(tiny_model: Path, tmp_path: Path) -> None:
    def weights(ranks: list[int]) -> list[tuple[int, bytes]]:
        folders = make_adapters(tiny_model, tmp_path, 2, ranks, ["v_proj"])
        files = [folder / "adapter_model.safetensors" for folder in folders]
        return [(file.stat().st_mtime_ns, file.read_bytes()) for file in files]

    first = weights([4])
    assert weights([4]) == first
    assert first[0][1] != first[1][1]
    changed = weights([4, 8])
    assert changed[0] == first[0] and changed[1][1] != first[1][1]
    assert [content for _, content in weights([4])] == [content for _, content in first], "a seed decides the bytes"
    (tmp_path / "0000" / "adapter_model.safetensors").unlink()
    assert weights([4])[0][1] == first[0][1]


@pytest.mark.parametrize(("ranks", "modules"), [([], ["v_proj"]), ([0], ["v_proj"]), ([4], ["lm_head"]), ([4], [])])
def test_what_cannot_be_made_is_refused(tiny_model: Path, tmp_path: Path, ranks: list[int], modules: list[str]) -> None:
    with pytest.raises(ValueError, match="ranks|modules"):
        make_adapters(tiny_model, tmp_path, 1, ranks, modules)
