"""HttpOptions: where the HTTP server listens, and what it calls the base model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from ...answers.answer_form import AnswerFormats


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpOptions:
    host: str
    port: int  # 0 takes a free one
    model: str  # path or hub id
    model_names: Sequence[str]  # of the base model in requests; answers have the first one
    formats: AnswerFormats = AnswerFormats()  # of reasoning and of calls of tools
    metrics_prefix: str = "blora"
    shows_metrics: bool = False  # to everybody, and not to operators only
    allowed_origins: Sequence[str] = ()  # of pages in browsers that may ask; "*" is any


def names_of_model(model: str, served: Sequence[str]) -> list[str]:
    """Returns the names by which requests know a model: those given, or the last part of its path, and its path."""
    return list(served) or list(dict.fromkeys((PurePath(model).name or model, model)))
