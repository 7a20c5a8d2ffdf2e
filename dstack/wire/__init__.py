"""Bytes on the network, spelled as upstream spells them. Pure: bytes in, messages out, and back.

`kms` and `guest` declare the messages, `message` writes and reads them as JSON, protobuf or a query, `prpc` knows
what surrounds them.
"""

from dstack.wire.message import from_json, from_protobuf, from_query, to_json, to_protobuf

__all__ = ["from_json", "from_protobuf", "from_query", "to_json", "to_protobuf"]
