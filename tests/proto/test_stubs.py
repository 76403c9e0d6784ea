"""The committed stubs are those of the .proto files, and the files keep their conventions."""

import re
from pathlib import Path

import pytest
from google.protobuf.descriptor import FieldDescriptor

from blora.proto import generate
from blora.proto.v1 import adapters_pb2, engine_pb2, generation_pb2

FILES = [adapters_pb2.DESCRIPTOR, engine_pb2.DESCRIPTOR, generation_pb2.DESCRIPTOR]
MESSAGES = [message for file in FILES for message in file.message_types_by_name.values()]


def test_regenerating_changes_nothing():
    committed = {path.name: path.read_text() for path in generate.FOLDER.glob("*_pb2*")}
    assert generate.generate_stubs() == committed


def test_stubs_are_imported_by_their_full_name():
    for path in generate.FOLDER.glob("*_pb2_grpc.py"):
        assert re.findall(r"^(?:from (\S+) )?import \w+_pb2", path.read_text(), re.MULTILINE) == ["blora.proto.v1"]
    assert {file.package for file in FILES} == {"blora.v1"}


def test_services_and_methods():
    services = {service.name: service for file in FILES for service in file.services_by_name.values()}
    assert {name: [method.name for method in service.methods] for name, service in services.items()} == {
        "GenerationService": ["Generate", "GenerateStream", "BatchGenerate", "Tokenize", "Detokenize"],
        "AdapterService": [
            *("LoadAdapter", "UploadAdapter", "InspectAdapter", "ActivateAdapter", "WarmAdapter"),
            *("UnloadAdapter", "ListAdapters", "GetAdapter", "PinAdapter", "WatchAdapters"),
        ],
        "EngineService": ["GetInfo", "WatchLoad", "Abort"],
    }
    answers = [method.output_type.name for service in services.values() for method in service.methods]
    assert len(set(answers)) == len(answers) and all(name.endswith("Response") for name in answers)


def test_every_sampling_scalar_can_be_unset():
    for field in generation_pb2.SamplingParams.DESCRIPTOR.fields:
        assert field.is_repeated or field.has_presence, field.name


def test_sampling_integers_are_too_wide_to_be_cut_short():
    narrow = (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_UINT32)
    scalars = [field for field in generation_pb2.SamplingParams.DESCRIPTOR.fields if not field.is_repeated]
    assert not [field.name for field in scalars if field.type in narrow]


def test_enums_start_unspecified_and_are_prefixed():
    for enum in [enum for file in FILES for enum in file.enum_types_by_name.values()]:
        prefix = re.sub(r"(?<!^)(?=[A-Z])", "_", enum.name).upper()
        assert enum.values[0].name == f"{prefix}_UNSPECIFIED" and enum.values[0].number == 0
        assert all(value.name.startswith(prefix) for value in enum.values)


@pytest.mark.parametrize("path", sorted(generate.SOURCES.glob("*.proto")), ids=lambda path: path.name)
def test_every_line_that_says_something_is_explained(path: Path):
    """A comment stands above every field, value, rpc and service, except fields that are explained by their type."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    for above, line in zip(lines, lines[1:], strict=False):
        if re.match(r"(rpc |service |\S.* = \d+;$)", line) and not line.startswith("//"):
            named_by_its_type = line == "Adapter adapter = 1;" or line.startswith(("string stop_", "uint32 stop_"))
            assert above.startswith("//") or named_by_its_type, line
