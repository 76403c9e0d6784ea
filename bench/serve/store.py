"""Store: writes a result where its flags say, under the names that `vllm bench serve` gives."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..load import Record
from ..table import write_json


def store(result: dict[str, Any], args: argparse.Namespace) -> Path:
    name = args.result_filename or file_name(result)
    path = Path(args.result_dir or ".") / name
    if not args.append_result:
        write_json(path, result)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(result) + "\n")
    return path


def write_records(path: Path, records: Iterable[Record]) -> None:
    path.write_text("".join(json.dumps(record.as_json()) + "\n" for record in records))


def file_name(result: dict[str, Any]) -> str:
    label = result["label"] or result["endpoint_type"]
    limit = f"-concurrency{result['max_concurrency']}" if result["max_concurrency"] else ""
    model = Path(result["model_id"]).name.replace(":", "-")
    return f"{label}-{result['request_rate']}qps{limit}-{model}-{result['date']}.json"
