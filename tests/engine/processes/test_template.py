"""The template process is ended by the kernel where the sandbox fails to stop a template."""

import signal
import subprocess
import sys

import pytest

from blora.engine.ipc.messages import ChatRefused, ChatRendered, RenderChat
from blora.engine.processes.template import render
from blora.engine.text.chat import Chat


def test_an_order_is_answered_with_a_text_or_with_the_argument_at_fault() -> None:
    chat = Chat(messages=[{"role": "user", "content": "a"}], chat_template="{{ messages[0].content }}{{ eos_token }}")
    assert render(RenderChat(chat, {"eos_token": "</s>"})) == ChatRendered("a</s>")
    refused = render(RenderChat(Chat(messages=chat.messages, chat_template="{{"), {}))
    assert isinstance(refused, ChatRefused) and refused.field == "chat_template"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "code"), [("while True: pass", -signal.SIGXCPU), ("bytearray(template.MAX_BYTES)", 1)]
)
def test_work_without_an_end_is_ended(work: str, code: int) -> None:
    script = f"""
from blora.engine.processes import template
template.MAX_SECONDS = 1
template.limit_memory()
template.limit_time()
{work}"""
    assert subprocess.run([sys.executable, "-c", script], timeout=200, stderr=subprocess.DEVNULL).returncode == code
