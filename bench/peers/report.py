"""Report: medians, ratios and one table of the results, and the same as plain data for JSON."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .entry import Entry
from .isolation import Isolation
from .measure import Figures, Measured
from .work import Work

RATES = ("decode", "prefill")
Summary = dict[str, float]


def medians(rounds: Mapping[int, Figures]) -> Summary:
    """Returns the median of each figure over the rounds."""
    entries = [asdict(figures) for figures in rounds.values()]
    return {name: statistics.median(entry[name] for entry in entries) for name in entries[0]}


def ratios(own: Mapping[int, Figures], other: Mapping[int, Figures]) -> Summary:
    """Returns own / other: the median of the rounds' ratios, over the rounds that both have."""
    turns = sorted(own.keys() & other.keys())
    if not turns:
        return {}
    return {name: statistics.median(getattr(own[t], name) / getattr(other[t], name) for t in turns) for name in RATES}


def summarise(
    work: Work,
    entries: Sequence[Entry],
    measured: Measured,
    greetings: Mapping[Entry, Mapping[str, Any]],
    out: Mapping[Entry, str],
    isolation: Mapping[Entry, Isolation],
) -> dict[str, Any]:
    """Returns plain data. Ratios compare the first entry's peer with the others."""
    own = measured.get(entries[0].peer, {})
    return {
        "work": asdict(work),
        "cases": [asdict(case) | {"key": case.key, "name": str(case)} for case in work.cases()],
        "peers": [
            {
                "peer": peer,
                "title": next(entry.title for entry in entries if entry.peer == peer),
                "workers": [
                    {
                        "modes": list(entry.modes),
                        "version": greetings.get(entry, {}).get("version"),
                        "settings": greetings.get(entry, {}).get("settings"),
                        "out": out.get(entry),
                        "isolation": asdict(isolation[entry]) if entry in isolation else None,
                    }
                    for entry in entries
                    if entry.peer == peer
                ],
                "results": {
                    case.key: _result(measured[peer][case], own.get(case, {}))
                    for case in work.cases()
                    if measured.get(peer, {}).get(case)
                },
            }
            for peer in dict.fromkeys(entry.peer for entry in entries)
        ],
    }


def _result(rounds: Mapping[int, Figures], own: Mapping[int, Figures]) -> dict[str, Any]:
    return {
        "rounds": [{"round": turn + 1} | asdict(figures) for turn, figures in sorted(rounds.items())],
        "median": medians(rounds),
        "first_peer_ratio": ratios(own, rounds),
    }


def format_table(summary: Mapping[str, Any]) -> str:
    """Returns a table in markdown: two lines for each peer, its speeds and how many times as fast the first peer is."""
    cases = summary["cases"]
    lines = [["", *(case["name"] for case in cases), "wrong base rows"]]
    first = summary["peers"][0]
    for peer in summary["peers"]:
        results = [peer["results"].get(case["key"]) for case in cases]
        lines.append([_name(peer), *map(_speeds, results), _wrong(peer)])
        if peer is not first:
            lines.append([f"{first['title']} / {peer['title']}", *map(_times, results), ""])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(_line(line, widths) for line in [lines[0], rule, *lines[1:]])


def format_notes(summary: Mapping[str, Any]) -> str:
    """Returns notes to the table: the settings of each peer, and the missing peers with reasons."""
    lines = ["Decode tokens/s (prefill tokens/s), medians; below each peer the median of the rounds' ratios."]
    for peer in summary["peers"]:
        for worker in peer["workers"]:
            name = f"{peer['title']}, {' and '.join(worker['modes'])}"
            if worker["settings"] is not None:
                lines.append(f"- {name}: {worker['version']}; {worker['settings']}")
            if worker["out"] is not None:
                lines.append(f"- {name} is missing: {worker['out']}")
            if worker["isolation"] is not None:
                lines.append(f"- {name}: {_isolation_note(worker['isolation'])}")
    return "\n".join(lines)


def _name(peer: Mapping[str, Any]) -> str:
    """Returns the peer's name with its version, or with a note that it is missing."""
    version = next((worker["version"] for worker in peer["workers"] if worker["version"]), None)
    name = f"{peer['title']} {version}" if version else str(peer["title"])
    return name if peer["results"] else f"{name}: missing"


def _speeds(result: Mapping[str, Any] | None) -> str:
    return f"{result['median']['decode']:,.0f} ({result['median']['prefill']:,.0f})" if result else ""


def _times(result: Mapping[str, Any] | None) -> str:
    if not result or not result["first_peer_ratio"]:
        return ""
    decode, prefill = (result["first_peer_ratio"][name] for name in RATES)
    return f"{decode:.2f}x ({prefill:.2f}x)"


def _wrong(peer: Mapping[str, Any]) -> str:
    found = [worker["isolation"] for worker in peer["workers"] if worker["isolation"]]
    return ", ".join(f"{isolation['wrong']} of {isolation['base_rows']}" for isolation in found)


def _isolation_note(isolation: Mapping[str, int]) -> str:
    text = f"{isolation['wrong']} of {isolation['base_rows']} base rows are wrong in a batch that also has adapters"
    if isolation["wrong"]:
        text += f"; {isolation['as_adapter']} of them have exactly the tokens of an adapter of the batch"
    return text


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return "| " + " | ".join([cells[0].ljust(widths[0]), *rest]) + " |"
