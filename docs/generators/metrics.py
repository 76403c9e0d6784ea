"""The page of metrics: the counts of a running engine, in the messages GetInfoResponse and Adapter."""

from collections.abc import Iterator

from google.protobuf.descriptor import Descriptor

from blora.engine.outputs import RequestMetrics
from blora.engine.telemetry.families import ABSENT, FAMILIES, Family

from .comments import proto_comments
from .grpc_services import HEAD, descriptor_of, message_rows
from .markdown import code, page, prose, sentence, table
from .source import fields_of

COPYING = ("num_requests", "num_bytes", "num_pages", "num_copies", "num_copied_bytes", "copy_seconds")


def make() -> str:
    adapters = descriptor_of("adapters").message_types_by_name
    return page(
        "Metrics",
        "`proto/schema/blora/v1/*.proto`, `engine/outputs.py` and `engine/telemetry/families.py`",
        "`blora info`, `Client.info()` and `get_info()` of `LLM` and `AsyncLLM` tell facts and counts of an engine. "
        "`blora adapters show NAME`, `Client.get_adapter(name)` and `get_adapter(name)` of `LLM` and `AsyncLLM` tell "
        "those of an adapter. Counts only grow; a rate is the difference of two readings.",
        "## Of the engine",
        *_groups(descriptor_of("engine").message_types_by_name["GetInfoResponse"]),
        "## Of an adapter",
        "Usage by its requests, `Adapter.usage`:",
        table(HEAD, message_rows(adapters["AdapterUsage"])),
        "Its size, its unfinished requests and its copies into the arena, fields of `Adapter`:",
        table(HEAD, (row for row in message_rows(adapters["Adapter"]) if row[0].strip("`") in COPYING)),
        "## On /metrics",
        "What Prometheus reads ([telemetry](../operations/telemetry.md)), each name after `blora:` or the prefix of "
        "`--metrics-prefix`, with the labels `model_name` and `engine` first. Counters end in `_total`, "
        "and histograms `_bucket`, `_sum` and `_count`. Names of vLLM:",
        table(METRICS_HEAD, map(_metric_row, (family for family in FAMILIES if family.is_vllm))),
        "Names of blora:",
        table(METRICS_HEAD, map(_metric_row, (family for family in FAMILIES if not family.is_vllm))),
        "Names of vLLM that have no meaning here, and are not shown:",
        table(("name", "why"), ((code(name), sentence(why)) for name, why in ABSENT.items())),
        "## Of a request",
        "`RequestOutput.metrics`, in process. Times are seconds: `arrival_time` is `time.time()`, names that end in "
        "`_ts` are `time.monotonic()`, and 0 means not yet. `first_token_latency` is the time from `queued_ts` to "
        "`first_token_ts`.",
        table(HEAD, ((code(f.name), code(f.type), sentence(f.comment)) for f in fields_of(RequestMetrics))),
    )


METRICS_HEAD = ("name", "kind", "labels", "meaning")


def _metric_row(family: Family) -> tuple[str, str, str, str]:
    return code(family.name), family.kind, ", ".join(map(code, family.labels)), family.help


def _groups(message: Descriptor) -> Iterator[str]:
    """One table for each group of fields, below the comment that stands above it."""
    heading, rows = "Facts and load:", list[tuple[str, str, str]]()
    for entry, row in zip(message.fields, message_rows(message), strict=True):
        comment = proto_comments()[f"{message.name}.{entry.name}"]
        if comment.heading:
            yield from (heading, table(HEAD, rows))
            heading, rows = prose(comment.heading).rstrip(".") + ":", []
        rows.append(row)
    yield from (heading, table(HEAD, rows))
