"""Messages as protobuf; the descriptors are made from the declarations, so there is no generated code."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as ProtobufMessage

from dstack.errors import MessageMalformedError
from dstack.wire.fields import FieldSpec, Kind, specs

Message = TypeVar("Message")

_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    Kind.UINT32: _Field.TYPE_UINT32,
    Kind.UINT64: _Field.TYPE_UINT64,
    Kind.BOOL: _Field.TYPE_BOOL,
    Kind.STRING: _Field.TYPE_STRING,
    Kind.BYTES: _Field.TYPE_BYTES,
    Kind.MESSAGE: _Field.TYPE_MESSAGE,
}
_POOL = descriptor_pool.DescriptorPool()


def to_protobuf(message: object) -> bytes:
    """The protobuf of a message: fields in the order of their numbers, defaults left out."""
    return _filled(message).SerializeToString(deterministic=True)


def from_protobuf(message: type[Message], raw: bytes) -> Message:
    """Read a message from protobuf; empty is all defaults, unknown fields are ignored.

    Raises:
        MessageMalformedError: Not protobuf, or text that is not UTF-8.
    """
    try:
        parsed = _runtime_class(message).FromString(raw)
    except DecodeError as exc:
        raise MessageMalformedError(f"{message.__name__}: not protobuf of this message") from exc
    return _taken(message, parsed)


def _filled(message: object) -> ProtobufMessage:
    given = {spec.name: _outward(getattr(message, spec.name)) for spec in specs(type(message))}
    filled: ProtobufMessage = _runtime_class(type(message))(**given)
    return filled


def _outward(value: object) -> object:
    if isinstance(value, tuple):
        return [_outward(each) for each in value]
    # The runtime looks at the exact type: sized bytes must become plain ones.
    if isinstance(value, bytes):
        return bytes(value)
    return value if value is None or isinstance(value, (str, int)) else _filled(value)


def _taken(message: type[Message], parsed: Any) -> Message:
    return message(**{spec.name: _inward(spec, parsed) for spec in specs(message)})


def _inward(spec: FieldSpec, parsed: Any) -> object:
    if spec.optional and not parsed.HasField(spec.name):
        return None
    value = getattr(parsed, spec.name)
    if spec.message is None:
        return tuple(value) if spec.repeated else value
    if spec.repeated:
        return tuple(_taken(spec.message, each) for each in value)
    return _taken(spec.message, value)


def _runtime_class(message: type[Any]) -> type[Any]:
    try:
        descriptor = _POOL.FindMessageTypeByName(_full_name(message))
    except KeyError:
        _register(message)
        descriptor = _POOL.FindMessageTypeByName(_full_name(message))
    return message_factory.GetMessageClass(descriptor)


def _full_name(message: type[Any]) -> str:
    return f"{message.__module__}.{message.__name__}"


def _register(message: type[Any]) -> None:
    """Make the class known to the runtime, after those it contains; once more does nothing."""
    file = descriptor_pb2.FileDescriptorProto(name=_full_name(message), package=message.__module__, syntax="proto3")
    described = file.message_type.add(name=message.__name__)
    for spec in specs(message):
        if spec.message is not None:
            _register(spec.message)
            file.dependency.append(_full_name(spec.message))
        _describe(described, spec)
    _POOL.Add(file)


def _describe(described: descriptor_pb2.DescriptorProto, spec: FieldSpec) -> None:
    added = described.field.add(
        name=spec.name,
        number=spec.number,
        type=_TYPES[spec.kind],
        label=_Field.LABEL_REPEATED if spec.repeated else _Field.LABEL_OPTIONAL,
    )
    if spec.message is not None:
        added.type_name = "." + _full_name(spec.message)
    elif spec.optional:
        # proto3 tells "absent" from "default" by a group of its own around the field.
        added.proto3_optional = True
        added.oneof_index = len(described.oneof_decl)
        described.oneof_decl.add(name=f"_{spec.name}")
