"""Generates the stubs beside the .proto files: `python proto/generate.py`. For developers; needs grpcio-tools.

The stubs are committed, so that neither users nor the build of a wheel need protoc. A test compares them with this
module's output.
"""

import tempfile
from importlib.resources import files
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "v1"
SCHEMA = FOLDER.parent / "schema"
SOURCES = SCHEMA / "blora" / "v1"

# The output of protoc does not pass mypy's strict checks, which would report it wherever it is imported.
UNCHECKED = "# mypy: ignore-errors\n"
# The folders of the .proto files are those of the package blora.v1, as other languages' tools expect; the stubs are
# modules of blora.proto.v1.
IMPORTED, IMPORTED_AS = "from blora.v1 import", "from blora.proto.v1 import"


def generate_stubs() -> dict[str, str]:
    """Returns file name -> content of every stub."""
    with tempfile.TemporaryDirectory() as out:
        run_protoc(*(f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")))
        stubs = sorted((Path(out) / "blora" / "v1").iterdir())
        return {path.name: UNCHECKED + path.read_text().replace(IMPORTED, IMPORTED_AS) for path in stubs}


def run_protoc(*outputs: str) -> None:
    """outputs: options of protoc that say what to make of the .proto files."""
    from grpc_tools import protoc  # type: ignore[import-untyped]

    of_protobuf = files("grpc_tools") / "_proto"
    roots = [f"-I{root}" for root in (SCHEMA, of_protobuf)]
    sources = [str(path.relative_to(SCHEMA)) for path in sorted(SOURCES.glob("*.proto"))]
    if protoc.main(["protoc", *roots, *outputs, *sources]) != 0:
        raise SystemExit("protoc failed")


def main() -> None:
    for old in FOLDER.glob("*_pb2*"):
        old.unlink()
    for name, text in generate_stubs().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
