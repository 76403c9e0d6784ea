"""The comments of the .proto files, which the generated stubs do not have. Asks protoc, and so needs grpcio-tools."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from blora.proto.generate import run_protoc


@dataclass(frozen=True, slots=True)
class Comment:
    text: str
    heading: str  # a comment that stands apart above it, for all that follows


@cache
def proto_comments() -> Mapping[str, Comment]:
    """Returns the comments by names such as "GetInfoResponse.model", "EngineService.GetInfo" or
    "FinishReason.FINISH_REASON_STOP"."""
    return dict(entry for file in _descriptors().file for entry in _comments_in(file))


def comment_of(*names: str) -> str:
    """Empty where there is none."""
    comment = proto_comments().get(".".join(names))
    return "" if comment is None else comment.text


def _comments_in(file: FileDescriptorProto) -> Iterator[tuple[str, Comment]]:
    for place in file.source_code_info.location:
        if place.leading_comments:
            heading = _plain("".join(place.leading_detached_comments))
            yield _name(file, place.path), Comment(_plain(place.leading_comments), heading)


def _name(file: FileDescriptorProto, path: Sequence[int]) -> str:
    """path: from the file to the commented element, by turns the number of a list in its container and an index."""
    container: Any = file
    names = []
    for number, index in zip(path[::2], path[1::2], strict=False):
        container = getattr(container, container.DESCRIPTOR.fields_by_number[number].name)[index]
        names.append(container.name)
    return ".".join(names)


def _plain(comment: str) -> str:
    """Without the space that each line begins with."""
    return "\n".join(line.removeprefix(" ") for line in comment.splitlines()).strip()


def _descriptors() -> FileDescriptorSet:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "descriptors"
        run_protoc(f"--descriptor_set_out={out}", "--include_source_info")
        return FileDescriptorSet.FromString(out.read_bytes())
