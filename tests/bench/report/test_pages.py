"""Pages of a run and of a search: whole, self-contained, and with what they are about."""

import random
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from blora.bench.load import Planned, Record
from blora.bench.load.groups import by_group, fairness_of, refusals_of
from blora.bench.load.result import Goal, result_of
from blora.bench.report import Page, run_page, search_page


def make_records(count: int) -> list[Record]:
    draw = random.Random(3)
    records = []
    for number in range(count):
        adapter = draw.choice(["", "a<b>", "b"])
        record = Record(Planned(seconds=number * 0.1, prompt=[1], max_tokens=3, adapter=adapter), sent=number * 0.1)
        status = draw.choice(["OK"] * 8 + ["RESOURCE_EXHAUSTED", "INTERNAL"])
        for place in range(3 if status == "OK" else 0):
            record.note_tokens(number * 0.1 + 0.05 * (place + 1), 1)
        record.note_end(number * 0.1 + 0.2, status, "why & how")
        records.append(record)
    return records


def make_result(records: list[Record]) -> dict[str, Any]:
    goal = Goal({"ttft": 100.0})
    result = result_of(records, goal, percents=(50.0, 90.0, 95.0, 99.0))
    adapters = by_group(records, lambda record: record.planned.adapter, goal, result["duration"])
    return result | {
        "model_id": "model",
        "backend": "blora",
        "request_rate": 10.0,
        "faults": ["it was <late>"],
        "refusals": refusals_of(records),
        "server": {"num_prompt_tokens": 7.0},
        "machine": {"cpu": "x"},
        "adapters": adapters,
        "adapters_fairness": fairness_of(adapters),
        "tenants": {"": adapters[""]},
        "tenants_fairness": {"jain": 1.0, "max_min": 1.0},
    }


class Checker(HTMLParser):
    """Counts charts, and looks for what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.num_charts = 0
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.num_charts += tag == "svg"
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(f"{tag} {name}={value}")


def checked(page: Page) -> tuple[str, Checker]:
    text, checker = page.render(), Checker()
    checker.feed(text)
    assert not checker.fetched
    return text, checker


@pytest.mark.parametrize("count", [0, 1, 60])
def test_a_page_of_a_run(count: int) -> None:
    records = make_records(max(count, 1))
    text, checker = checked(run_page(make_result(records), records[:count]) if count > 1 else _small(records, count))
    assert checker.num_charts == (4 if count > 1 else 3)
    assert "it was &lt;late&gt;" in text
    if count > 1:
        assert "a&lt;b&gt;" in text and "why &amp; how" in text and "num_prompt_tokens" in text


def _small(records: list[Record], count: int) -> Page:
    result = make_result(make_records(60)) | {"adapters": {}, "tenants": {}}
    return run_page(result, records[:count])


def test_a_page_of_a_search() -> None:
    records = make_records(60)
    results = [make_result(records) | {"request_rate": rate} for rate in (4.0, 1.0, 2.0)]
    point = {"total": 60, "good": 50, "runs": 1, "is_met": True, "is_sure": False}
    report = {"rate": 2.0, "points": [{"rate": rate, **point} for rate in (1.0, 2.0, 4.0)], "results": results}
    text, checker = checked(search_page(report))
    assert checker.num_charts == 4
    assert "2.00 requests/s" in text and len(re.findall("met, not sure", text)) == 3
    assert "none" in search_page(report | {"rate": None}).render()
