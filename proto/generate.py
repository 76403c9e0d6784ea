"""Generates the stubs beside the .proto files: `python proto/generate.py`. For developers; needs grpcio-tools.

The stubs are committed, so that neither users nor the build of a wheel need protoc. A test compares them with this
module's output.
"""

import tempfile
from pathlib import Path

PACKAGE = Path("blora/proto/v1")
FOLDER = Path(__file__).resolve().parent / "v1"

# The output of protoc does not pass mypy's strict checks, which would report it wherever it is imported.
UNCHECKED = "# mypy: ignore-errors\n"


def generate_stubs() -> dict[str, str]:
    """Returns file name -> content of every stub."""
    with tempfile.TemporaryDirectory() as out:
        _run_protoc(out)
        return {path.name: UNCHECKED + path.read_text() for path in (Path(out) / PACKAGE).iterdir()}


def _run_protoc(out: str) -> None:
    from grpc_tools import protoc  # type: ignore[import-untyped]

    # With this virtual path, the stubs import each other as blora.proto.v1. Without it, they use a name that can be
    # imported only while this folder is on sys.path.
    root = f"-Iblora/proto={FOLDER.parent}"
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    sources = [str(PACKAGE / path.name) for path in sorted(FOLDER.glob("*.proto"))]
    if protoc.main(["protoc", root, *outputs, *sources]) != 0:
        raise SystemExit("protoc failed")


def main() -> None:
    for old in FOLDER.glob("*_pb2*"):
        old.unlink()
    for name, text in generate_stubs().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
