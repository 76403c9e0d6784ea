"""What is known of adapters, as text for a terminal: of the engine's own types and of messages with their fields."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a client has no numpy
    from blora.adapters.report import AdapterReport
    from blora.proto.v1.adapters_pb2 import AdapterReport as ReportMessage


def report_text(report: "AdapterReport | ReportMessage") -> str:
    """A refused adapter: its problems. A good one: its size, its layers and its modules."""
    if report.problems:
        return "\n".join([f"{report.path} is refused:", *(f"  {problem}" for problem in report.problems)])
    facts = (
        ("path", report.path),
        ("kind", report.kind),
        ("digest", report.digest),
        ("tensors", f"{len(report.applied_tensors)} applied, {len(report.ignored_tensors)} ignored"),
        ("on disk", f"{report.num_disk_bytes:,} bytes"),
        ("in host memory", f"{report.num_host_bytes:,} bytes"),
        ("in the arena", f"{report.num_device_bytes:,} bytes in {report.num_pages} pages"),
    )
    notes = [f"ignored: {name}" for name in report.ignored_tensors]
    notes += [f"warning: {warning}" for warning in report.warnings]
    modules = [(m.name, str(m.rank), f"{m.scaling:g}", f"{m.norm:.4g}") for m in report.modules]
    layers = [(layer.name, "", "", f"{layer.norm:.4g}") for layer in report.layers]
    changes = table([("module", "rank", "scaling", "norm of change"), *modules, ("layer", "", "", ""), *layers])
    return "\n".join([*(f"{name:<15} {value}" for name, value in facts), *notes, "", *changes])


def table(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Rows of the same length as lines: the first column to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
        yield "  ".join(cells).rstrip()
