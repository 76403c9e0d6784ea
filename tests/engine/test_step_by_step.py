"""LLM as vLLM's LLMEngine: requests under ids of the caller's, computed step by step, and the queue of `enqueue`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from tqdm import tqdm

from blora.engine import LLM, AsyncLLM, Counter, Gauge, InvalidRequest, RequestOutput, RequestOutputKind, SamplingParams
from blora.engine.arguments.unserved import UNSERVED

GREEDY = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)


def finished(llm: LLM) -> dict[str, RequestOutput]:
    final = {}
    while llm.has_unfinished_requests():
        final |= {output.request_id: output for output in llm.step() if output.finished}
    return final


def test_requests_join_between_steps_and_give_what_generate_gives(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    prompts = ["first", "second", "third"]
    expected = [output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY, use_tqdm=False)]
    left, final, sizes = list(enumerate(prompts)), {}, list[int]()
    while left or llm.has_unfinished_requests():
        if left:
            index, prompt = left.pop(0)
            assert llm.add_request(f"request {index}", prompt, GREEDY) == f"request {index}"
        outputs = llm.step()
        sizes.append(len(outputs))
        final |= {output.request_id: output for output in outputs if output.finished}
    assert [final[f"request {index}"].outputs[0].token_ids for index in range(3)] == expected
    assert max(sizes) == 3 and sum(sizes) == 3 * GREEDY.max_tokens  # type: ignore[operator]
    assert llm.step() == []


@pytest.mark.parametrize("kind", RequestOutputKind)
def test_outputs_are_of_the_kind_asked_for(make_llm: Callable[..., LLM], kind: RequestOutputKind) -> None:
    llm = make_llm()
    llm.add_request("a", "text", SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, output_kind=kind))
    counts = []
    while llm.has_unfinished_requests():
        counts += [len(output.outputs[0].token_ids) for output in llm.step()]
    assert counts == {"cumulative": [1, 2, 3, 4], "delta": [1, 1, 1, 1], "final_only": [4]}[kind.value]


def test_samples_arrival_and_priority(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(scheduling_policy="priority", max_num_seqs=1)
    sampling = SamplingParams(n=2, temperature=1, max_tokens=3, ignore_eos=True)
    for label, priority in (("late", 5), ("early", 0)):
        llm.add_request(label, "text", sampling, arrival_time=1.5, priority=priority)
    assert llm.get_num_unfinished_requests() == 2
    final = finished(llm)
    assert list(final) == ["early", "late"] and [len(output.outputs) for output in final.values()] == [2, 2]
    assert final["late"].metrics is not None and final["late"].metrics.arrival_time == 1.5


def test_aborted_requests_are_shown_no_more(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    for label in ("a", "b", "c"):
        llm.add_request(label, "text", GREEDY)
    llm.step()
    llm.abort_request(["a", "unknown"])
    llm.abort_request("c")
    assert finished(llm).keys() == {"b"}


def test_an_id_is_taken_until_its_request_ends(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    llm.add_request("a", "text", GREEDY)
    with pytest.raises(InvalidRequest, match="request_id: 'a'"):
        llm.add_request("a", "text", GREEDY)
    with pytest.raises(InvalidRequest, match="request_id: int"):
        llm.add_request(3, "text", GREEDY)  # type: ignore[arg-type]
    assert finished(llm).keys() == {"a"}
    llm.add_request("a", "text", GREEDY)
    assert finished(llm).keys() == {"a"}


def test_what_is_enqueued_is_computed_when_it_is_waited_for(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(max_num_seqs=2)
    prompts = [f"prompt {index}" for index in range(5)]
    lengths = [SamplingParams(temperature=0, max_tokens=1 + index % 3, ignore_eos=True) for index in range(5)]
    expected = [output.outputs[0].token_ids for output in llm.generate(prompts, lengths, use_tqdm=False)]
    labels = llm.enqueue(prompts[:3], lengths[:3]) + llm.enqueue(prompts[3:], lengths[3:])
    outputs = llm.wait_for_completion(use_tqdm=False)
    assert [output.request_id for output in outputs] == labels
    assert [output.outputs[0].token_ids for output in outputs] == expected
    assert llm.wait_for_completion(use_tqdm=False) == []


def test_other_calls_leave_the_queue_its_outputs(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    (label,) = llm.enqueue("queued", GREEDY)
    assert len(llm.generate(["other"], GREEDY, use_tqdm=False)) == 1
    (output,) = llm.wait_for_completion(use_tqdm=False)
    assert output.request_id == label and output.finished


def test_conversations_are_enqueued_in_their_template(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    conversation = [{"role": "user", "content": "Hi"}]
    (expected,) = llm.chat(conversation, GREEDY, use_tqdm=False, chat_template="{{ messages[0].content }}!")
    llm.enqueue_chat(conversation, GREEDY, chat_template="{{ messages[0].content }}!")
    (output,) = llm.wait_for_completion(use_tqdm=False)
    assert output.prompt_token_ids == expected.prompt_token_ids and output.outputs == expected.outputs


def test_a_bar_may_be_made_by_a_function(make_llm: Callable[..., LLM], capsys: pytest.CaptureFixture[str]) -> None:
    make_llm().generate(["a", "b"], GREEDY, use_tqdm=partial(tqdm, ascii=" #"))
    assert "2/2" in capsys.readouterr().err


def test_metrics_have_the_names_of_vllm(make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    llm.generate("0123456789", GREEDY, use_tqdm=False)
    metrics = {metric.name: metric for metric in llm.get_metrics()}
    running, tokens = metrics["vllm:num_requests_running"], metrics["vllm:generation_tokens"]
    assert isinstance(running, Gauge) and running.value == 0
    assert isinstance(tokens, Counter) and tokens.value == 5 and tokens.labels["engine"] == "0"
    prompts = metrics["vllm:prompt_tokens"]
    assert isinstance(prompts, Counter) and prompts.value == 10


@pytest.mark.parametrize("name", ["beam_search", "embed", "apply_model", "renderer", "start_profile"])
def test_what_is_not_served_is_refused_by_name(make_llm: Callable[..., LLM], name: str) -> None:
    llm: Any = make_llm()
    assert not hasattr(llm, name)
    with pytest.raises(AttributeError, match=f"{name} of vLLM is not served: "):
        getattr(llm.llm_engine, name)


def test_nothing_that_is_served_is_refused() -> None:
    assert not [name for name in UNSERVED if hasattr(LLM, name) or hasattr(AsyncLLM, name)]
