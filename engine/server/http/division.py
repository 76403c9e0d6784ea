"""Division: how the answers of one chat are divided, from the tools of the request and the model's chat template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blora.scheduler import SamplingParams, StructuredOutputsParams

from ...answers.answer_form import AnswerForm
from ...answers.tool_choice import ToolChoice
from ...errors import InvalidRequest
from ...grammar.source import source_of
from ...text.user_tokenizer import UserTokenizer
from .chat_view import DividedView
from .requests import ChatBody, is_given, listed
from .site import Site

MAX_TOOLS_BYTES, MAX_BRACKETS = 256 << 10, 1 << 14  # which are read in some milliseconds
NUM_LAST_TOKENS = 16  # of a prompt; they say whether it ends inside the reasoning


@dataclass(frozen=True, slots=True)
class Division:
    form: AnswerForm
    tokenizer: UserTokenizer
    shows_reasoning: bool

    def view(self, prompt_token_ids: Sequence[int]) -> DividedView:
        end = str(self.tokenizer.decode(list(prompt_token_ids[-NUM_LAST_TOKENS:])))
        return DividedView(self.form, end, self.shows_reasoning)


def divide(site: Site, body: ChatBody, tokenizer: UserTokenizer, sampling: SamplingParams) -> Division | None:
    """Returns None where the text is the content. Sets in the parameters what the division needs. Raises
    InvalidRequest."""
    choice = ToolChoice.read(_read("tools", body), _read("tool_choice", body), body.parallel_tool_calls)
    has_template = tokenizer.chat_template is not None
    template = tokenizer.get_chat_template(tools=choice.tools or None) if has_template else None
    form = AnswerForm.of(site.formats, template, choice, is_structured=_is_ruled(sampling.structured_outputs))
    if form.is_plain():
        return None
    if choice.schema is not None:
        sampling.structured_outputs = _demanded(choice.schema)
    if form.hides_markers(tokenizer.all_special_tokens):
        sampling.skip_special_tokens = False
    return Division(form, tokenizer, body.include_reasoning is not False)


def _is_ruled(params: StructuredOutputsParams | None) -> bool:
    """Returns whether a text is ruled from its first token; tags rule what comes after they were written."""
    return params is not None and params.structural_tag is None


def _demanded(schema: Mapping[str, Any]) -> StructuredOutputsParams:
    """Raises InvalidRequest for tools whose schemas are too large."""
    params = StructuredOutputsParams(json=dict(schema))
    try:
        source_of(params)
    except InvalidRequest as error:
        raise InvalidRequest("tools", f"have schemas that cannot be demanded: {error.reason}") from error
    return params


def _read(name: str, body: ChatBody) -> Any:
    raw = getattr(body, name)
    if not is_given(raw):
        return None
    data = bytes(raw)
    if len(data) > MAX_TOOLS_BYTES:
        raise InvalidRequest(name, f"has {len(data)} bytes; at most {MAX_TOOLS_BYTES} are read")
    if data.count(b"{") + data.count(b"[") > MAX_BRACKETS:
        raise InvalidRequest(name, f"has more than {MAX_BRACKETS} objects and lists")
    return listed(name, raw, Any)
