"""Counters: what the server counts, before a run and after it, from GetInfo or from `/metrics`."""

import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

import grpc

from blora.proto.client import Client

from ..load import TargetSpec

LOOK_SECONDS = 10.0


def read_counters(spec: TargetSpec) -> dict[str, float]:
    """Returns numbers by name; none from a server that shows none, or not to this caller."""
    if spec.backend == "blora":
        return _of_info(spec)
    return {} if spec.backend == "in-process" else _of_metrics(spec)


def change(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Returns what has changed, and by how much."""
    return {name: value - before.get(name, 0.0) for name, value in after.items() if value != before.get(name, 0.0)}


def _of_info(spec: TargetSpec) -> dict[str, float]:
    try:
        with Client(spec.address, timeout=LOOK_SECONDS) as client:
            info = client.info()
    except grpc.RpcError:
        return {}
    fields: Mapping[str, Any] = asdict(info) if is_dataclass(info) else {}
    return {name: float(value) for name, value in fields.items() if isinstance(value, int | float)}


def _of_metrics(spec: TargetSpec) -> dict[str, float]:
    """The sums of counters over their labels."""
    from prometheus_client.parser import text_string_to_metric_families

    headers = {} if spec.api_key is None else {"Authorization": f"Bearer {spec.api_key}"}
    request = urllib.request.Request(f"{spec.address.rstrip('/')}/metrics", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=LOOK_SECONDS) as response:
            text = response.read().decode()
    except (OSError, urllib.error.HTTPError):
        return {}
    found: dict[str, float] = defaultdict(float)
    for family in text_string_to_metric_families(text):
        if family.type == "counter":
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    found[sample.name] += sample.value
    return dict(found)
