"""The Grafana board and the files beside it: valid, and about metrics that a server really shows."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_llm import statistics

from blora.engine.outputs import AdapterUsage
from blora.engine.telemetry.exposition import render

FOLDER = Path(__file__).parents[3] / "deploy/observability"
BOARD: dict[str, Any] = json.loads((FOLDER / "grafana/blora.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]


def shown() -> dict[str, set[str]]:
    """Name of a sample -> its labels, of a server in which everything has happened."""
    told = statistics()
    seen = told.observations
    for names in (seen.ends, seen.refusals):
        names["some"] += 1
    for by_name in (seen.by_adapter, seen.by_tenant):
        by_name.usage["some"] = AdapterUsage()
    text, _ = asyncio.run(render(told))
    found = re.findall(r"^([a-z0-9_:]+)\{(.*)\} ", text.decode(), re.MULTILINE)
    return {name: set(re.findall(r"(\w+)=\"", labels)) for name, labels in found}


def test_every_expression_is_about_metrics_that_exist_and_their_labels() -> None:
    metrics = shown()
    for panel in PANELS:
        for target in panel["targets"]:
            names = re.findall(r"blora:[a-z0-9_]+", target["expr"])
            assert names and not set(names) - metrics.keys(), target["expr"]
            grouped = {label for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(", ")}
            known = set().union(*(metrics[name] for name in names)) | {"instance"}
            assert grouped <= known, target["expr"]
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= grouped


def test_panels_fill_rows_and_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in BOARD["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def test_parentheses_of_expressions_close() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            for opening, closing in ("()", "{}", "[]"):
                assert target["expr"].count(opening) == target["expr"].count(closing)


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.y*ml")), ids=lambda path: path.name)
def test_the_files_beside_it_are_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_what_compose_mounts_is_there() -> None:
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    for service in services.values():
        for volume in service["volumes"]:
            assert (FOLDER / volume.split(":")[0]).exists(), volume
    (job,) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
