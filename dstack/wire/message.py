"""The forms a message takes on the network; each module of messages declares, this one writes and reads."""

from dstack.wire.json_form import from_json, to_json
from dstack.wire.protobuf import from_protobuf, to_protobuf
from dstack.wire.query import from_query

__all__ = ["from_json", "from_protobuf", "from_query", "to_json", "to_protobuf"]
