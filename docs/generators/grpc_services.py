"""The page of the gRPC services: methods, messages and enums, with the comments of the .proto files."""

import re
from collections.abc import Iterator
from importlib import import_module

from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    FileDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)

from .comments import comment_of
from .markdown import code, one_line, page, prose, table

HEAD = ("field", "type", "meaning")
PACKAGE = "blora.v1"
FILES = ("generation", "adapters", "engine")
CODE_LINE = re.compile(r"^ {2}([A-Z_]+) +(.*(?:\n {4}.*)*)$", re.MULTILINE)  # a status code and when it comes
SCALARS = {
    number: name.removeprefix("TYPE_").lower()
    for name, number in vars(FieldDescriptor).items()
    if name.startswith("TYPE_")
}


def make() -> str:
    return page(
        "gRPC reference",
        "`proto/schema/blora/v1/*.proto`",
        "The package is `blora.v1`. The server also has `grpc.health.v1.Health` and reflection. Stubs are in "
        "`blora.proto.v1`; the clients for Python are `Client` and `AsyncClient` of `blora.proto.client` "
        "([Python API](python.md)). "
        "[Errors](errors.md) explains the status codes.",
        *(part for name in FILES for part in _file(name)),
    )


def descriptor_of(name: str) -> FileDescriptor:
    module = import_module(f"blora.proto.v1.{name}_pb2")
    descriptor: FileDescriptor = module.DESCRIPTOR
    return descriptor


def _file(name: str) -> Iterator[str]:
    file = descriptor_of(name)
    for service in file.services_by_name.values():
        yield from _service(service)
    for message in file.message_types_by_name.values():
        yield from _message(message)
    for enum in file.enum_types_by_name.values():
        yield from _enum(enum)


def _service(service: ServiceDescriptor) -> Iterator[str]:
    yield f"## {service.name}"
    yield _text(comment_of(service.name))
    for method in service.methods:
        yield f"### {service.name}.{method.name}"
        yield _signature(method)
        yield _text(comment_of(service.name, method.name))


def _signature(method: MethodDescriptor) -> str:
    takes = "stream " * method.client_streaming + _link(method.input_type)
    gives = "stream " * method.server_streaming + _link(method.output_type)
    return f"Takes {takes}, gives {gives}."


def _link(type_: Descriptor | EnumDescriptor) -> str:
    if type_.file.package != PACKAGE:
        return code(type_.full_name)
    return f"[{type_.name}](#{type_.name.lower()})"


def _text(comment: str) -> str:
    """A comment in which lines with a status code are entries of a list."""
    parts = CODE_LINE.split(comment)
    entries = [f"- {code(name)}: {prose(one_line(text))}" for name, text in zip(parts[1::3], parts[2::3], strict=True)]
    rest = [prose(part.strip()) for part in parts[3::3] if part.strip()]
    return "\n\n".join(part for part in (prose(parts[0].strip()), "\n".join(entries), *rest) if part)


def _message(message: Descriptor) -> Iterator[str]:
    yield f"### {message.name}"
    yield prose(comment_of(message.name))
    yield table(HEAD, message_rows(message)) if message.fields else "It has no field."


def message_rows(message: Descriptor) -> Iterator[tuple[str, str, str]]:
    for entry in message.fields:
        yield code(entry.name), _type(entry), prose(one_line(comment_of(message.name, entry.name)))


def _type(entry: FieldDescriptor) -> str:
    if entry.message_type is not None and entry.message_type.GetOptions().map_entry:
        key, value = entry.message_type.fields
        return f"map of {_type(key)} to {_type(value)}"
    type_ = entry.message_type or entry.enum_type
    name = code(SCALARS[entry.type]) if type_ is None else _link(type_)
    group = entry.containing_oneof
    if group is not None and len(group.fields) > 1:
        return f"{name}, one of {code(group.name)}"
    if entry.is_repeated:
        return f"list of {name}"
    return f"{name}, optional" if group is not None else name


def _enum(enum: EnumDescriptor) -> Iterator[str]:
    yield f"### {enum.name}"
    yield prose(comment_of(enum.name))
    values = ((value.name, str(value.number)) for value in enum.values)
    rows = ((code(name), number, prose(one_line(comment_of(enum.name, name)))) for name, number in values)
    yield table(("value", "number", "meaning"), rows)
