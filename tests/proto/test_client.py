"""The client as far as it needs no server: its conversion of arguments, and its imports.

The tests in tests/engine/server use the rest of the client.
"""

import json
import os
import subprocess
import sys

import grpc
import pytest

from blora.proto import calls, client
from blora.proto.v1 import generation_pb2

HEAVY = ["torch", "transformers", "numpy", "blora.engine", "blora.scheduler", "blora.adapters"]


def test_a_client_imports_nothing_of_the_engine():
    script = f"import sys, blora.proto.client; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [("text", "text"), ([1, 2], "token_ids"), ((), "token_ids"), ([{"role": "user", "content": "hi"}], "chat")],
)
def test_prompts(prompt, kind):
    request = generation_pb2.GenerateRequest(**calls._prompt_fields(prompt))
    assert request.WhichOneof("prompt") == kind


def test_none_is_not_given():
    sampling = calls._sampling({"seed": None, "n": 1})
    assert [field.name for field, _ in sampling.ListFields()] == ["n"]


def test_an_unknown_sampling_parameter_is_refused():
    with pytest.raises(ValueError, match="tmeperature"):
        calls._sampling({"tmeperature": 1.0})


def test_a_server_that_is_not_there():
    with client.Client("127.0.0.1:1", timeout=5) as unanswered, pytest.raises(grpc.RpcError) as caught:
        unanswered.info()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 1 << 63), ("max_tokens", 1 << 70), ("seed", "7"), ("stop", ["\ud800"]), ("logit_bias", {"x": 1.0})],
)
def test_a_value_that_no_message_can_hold_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"^{name}: "):
        calls._sampling({"temperature": 0.0, name: value})


def test_structured_outputs_are_given_as_values():
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    message = calls._sampling({"structured_outputs": {"json": schema, "disable_any_whitespace": True}})
    assert json.loads(message.structured_outputs.json) == schema and message.structured_outputs.disable_any_whitespace
    assert list(calls._sampling({"structured_outputs": {"choice": ["a", "b"]}}).structured_outputs.choice.choices) == [
        *("a", "b")
    ]
    for value in ("{}", {"jsn": {}}, {"choice": "yes"}, {"json": {"a": {1}}}):
        with pytest.raises(ValueError, match="^structured_outputs: "):
            calls._sampling({"structured_outputs": value})


def test_only_none_is_the_base_model():
    with client.Client("127.0.0.1:1") as unasked, pytest.raises(ValueError, match="adapter: "):
        unasked.generate("hello", "")


def test_a_forked_child_is_told_to_be_spawned():
    with client.Client("127.0.0.1:1", timeout=5) as parents:
        stream = parents.generate_stream("hello")
        uses = [parents.info, parents.list_adapters, lambda: parents.generate("hello"), lambda: next(iter(stream))]
        child = os.fork()
        if not child:
            os._exit(sum(not _is_refused(use) for use in uses) or parents.close() or 0)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(grpc.RpcError):
            parents.info()


def _is_refused(use):
    try:
        use()
    except client.WrongProcess as error:
        return "spawn" in str(error)
    return False
