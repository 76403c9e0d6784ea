"""Printing: facts about adapters as text for a terminal, from the engine's types or a client's results with the same
fields."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from blora.proto.results import AdapterEvent, AdapterInfo, AdapterSnapshot
from blora.proto.results import AdapterReport as ServersReport
from blora.proto.results import ModuleReport as ServersModuleReport

if TYPE_CHECKING:  # a client may have no numpy
    from blora.adapters.report import AdapterReport, ModuleReport


def report_text(report: "AdapterReport | ServersReport") -> str:
    """Returns the report of a good adapter, with its sizes, modules and layers; or of a refused one, with its problems
    and the facts found."""
    if report.problems:
        return "\n".join(
            [f"{report.path} is refused:", *(f"  {problem}" for problem in report.problems), *_known(report)]
        )
    facts = (
        ("path", report.path),
        ("kind", report.kind),
        ("digest", report.digest),
        ("tensors", f"{len(report.applied_tensors)} applied, {len(report.ignored_tensors)} ignored"),
        *([("vocabulary", f"{report.vocab_size:,} tokens, its own")] if report.vocab_size else []),
        ("on disk", f"{report.num_disk_bytes:,} bytes"),
        ("in host memory", f"{report.num_host_bytes:,} bytes"),
        ("in the arena", f"{report.num_device_bytes:,} bytes in {report.num_pages} pages"),
    )
    notes = [f"ignored: {name}" for name in report.ignored_tensors]
    notes += [f"names: {change}" for change in report.name_changes]
    notes += [f"unknown field: {name}" for name in report.unknown_fields]
    notes += [f"warning: {warning}" for warning in report.warnings]
    modules = [
        (m.name, str(m.rank), f"{m.scaling:g}", *(f"{n:.4g}" if n else "" for n in _norms(m))) for m in report.modules
    ]
    layers = [(layer.name, "", "", f"{layer.norm:.4g}", "", "", "") for layer in report.layers]
    head = ("module", "rank", "scaling", "norm of change", "of gain - 1", "of shift", "of rows")
    changes = table([head, *modules, ("layer", *[""] * 6), *layers])
    return "\n".join([*(f"{name:<15} {value}" for name, value in facts), *notes, "", *changes])


def _known(report: "AdapterReport | ServersReport") -> Iterable[str]:
    """Yields the facts found about a refused adapter."""
    if report.kind:
        yield f"kind {report.kind}"
    fates = (report.applied_tensors, report.ignored_tensors, report.refused_tensors)
    if any(fates):
        yield "tensors: {} fit, {} ignored, {} do not fit".format(*map(len, fates))
    yield from (f"does not fit: {name}" for name in report.refused_tensors)
    ranks = sorted({module.rank for module in report.modules if module.rank})
    if ranks:
        yield f"ranks {', '.join(map(str, ranks))} on {len(report.modules)} modules that fit"


def _norms(module: "ModuleReport | ServersModuleReport") -> tuple[float | None, ...]:
    return module.norm, module.gain_norm, module.shift_norm, module.rows_norm


def adapters_text(adapters: Iterable[AdapterInfo]) -> Iterable[str]:
    """Yields a table with one line for each adapter."""
    head = ("name", "version", "ranks", "bytes", "resident", "running", "requests", "tokens out")
    return table([head, *(_line(adapter) for adapter in adapters)])


def _line(adapter: AdapterInfo) -> tuple[str, ...]:
    counts = (adapter.num_requests, adapter.usage.num_requests, adapter.usage.num_generated_tokens)
    ranks = ",".join(map(str, adapter.ranks))
    size, place = f"{adapter.num_bytes:,}", _place(adapter)
    return adapter.name, str(adapter.version), ranks, size, place, *map("{:,}".format, counts)


def _place(adapter: AdapterInfo) -> str:
    if adapter.set_aside:
        return "set aside"
    return "pinned" if adapter.pinned else "yes" if adapter.resident else "no" if adapter.in_host_memory else "on disk"


def adapter_text(adapter: AdapterInfo) -> str:
    """Returns an adapter's facts, its versions and the usage of its requests."""
    usage = adapter.usage
    lines = [
        *adapters_text([adapter]),
        f"digest {adapter.digest}",
        f"copied into memory {adapter.num_copies:,} times: {adapter.num_copied_bytes:,} bytes in "
        f"{adapter.copy_seconds:.3f} s",
        f"{usage.num_prompt_tokens:,} prompt tokens, {usage.num_cached_tokens:,} of them cached; "
        f"queued for {usage.queue_seconds:.3f} s in all",
        f"last used {_time(usage.last_used)}" if usage.last_used else "never used",
    ]
    for kept in adapter.versions:
        state = "active" if kept.active else "kept"
        lines.append(f"version {kept.number}  {state:<6}  {kept.digest[:12]}  {_time(kept.loaded_at)}  {kept.path}")
    lines += [f"set aside: {adapter.set_aside}"] if adapter.set_aside else []
    return "\n".join([*lines, *(f"warning: {warning}" for warning in adapter.warnings)])


def news_text(news: AdapterSnapshot | AdapterEvent) -> Iterable[str]:
    if isinstance(news, AdapterSnapshot):
        yield f"{news.revision}  {len(news.adapters)} adapters"
        yield from (f"  {adapter.name}@{adapter.version}  {adapter.digest[:12]}" for adapter in news.adapters)
    else:
        yield f"{news.revision}  {news.kind}  {news.name}@{news.version}  {news.digest[:12]}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")


def table(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Yields rows of the same length as lines. The first column is aligned left, all others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
