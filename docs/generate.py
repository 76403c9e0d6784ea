"""Writes the reference pages: `python -m docs.generate`, which `make docs` does. A test compares them with the code."""

from collections.abc import Callable
from pathlib import Path

from .generators import cli, errors, grpc_services, metrics, options, python_api, vllm

FOLDER = Path(__file__).parent / "reference"
PAGES: dict[str, Callable[[], str]] = {
    "cli.md": cli.make,
    "errors.md": errors.make,
    "grpc.md": grpc_services.make,
    "metrics.md": metrics.make,
    "options.md": options.make,
    "python.md": python_api.make,
    "vllm.md": vllm.make,
}


def main() -> None:
    for name, make in PAGES.items():
        (FOLDER / name).write_text(make())


if __name__ == "__main__":
    main()
