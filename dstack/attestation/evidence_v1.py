"""Evidence in the V1 form: MessagePack with named fields (kms.md 5.3).

Guests write it only if an event is of version 2, which the V0 form cannot carry. Quote and report data are arrays of
numbers there, digests and payloads byte strings; a reader takes arrays, byte strings and text for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgpack

from dstack.attestation.evidence_value import MAX_EVIDENCE, Evidence
from dstack.attestation.quote import MAX_PADDING, MAX_QUOTE
from dstack.attestation.report_data import APP_DATA, report_data
from dstack.errors import EvidenceMalformedError
from dstack.measurement.event_log import MAX_EVENTS, Event, RuntimeEvent
from dstack.measurement.strict_json import Members
from dstack.values import ReportData, bytes_from_hex

_VERSION = 1
_MAX_LIST, _MAX_MAP = MAX_QUOTE + MAX_PADDING, 16
# A document of empty lists would take fifty times its size in memory.
_MAX_CONTAINERS, _MAX_ELEMENTS = 4 * MAX_EVENTS, 1_000_000
_PLATFORM, _POD = "tdx", "dstack-pod"
_MAX_U32 = 2**32 - 1
_EVENT = frozenset({"imr", "event_type", "digest", "event", "event_payload", "version", "preimage"})
_RUNTIME_EVENT = frozenset({"event", "payload", "version"})


def parse_evidence_v1(raw: bytes) -> Evidence:
    """Read a V1 blob, to its last byte.

    Raises:
        EvidenceMalformedError: Another form, platform or stack, a member missing, unknown or repeated, or bytes left.
        EventLogMalformedError: An event in it contradicts itself.
    """
    document = _members(_unpack(raw), "evidence")
    document.refuse_others(frozenset({"version", "platform", "stack"}))
    version = document.integer("version", maximum=_MAX_U32)
    if version != _VERSION:
        raise EvidenceMalformedError(f"evidence: want version {_VERSION}, got {version}")
    platform = _kind(document, "platform", {_PLATFORM: {"quote", "event_log"}})
    stack = _kind(
        document,
        "stack",
        {
            "dstack": {"report_data", "runtime_events", "config"},
            _POD: {"report_data", "runtime_events", "config", "report_data_payload"},
        },
    )
    evidence = Evidence(
        quote=_octets(platform, "quote"),
        event_log=_list(platform, "event_log", _event),
        runtime_events=_list(stack, "runtime_events", _runtime_event),
        report_data=ReportData(_octets(stack, "report_data")),
        config=stack.text("config"),
    )
    if "report_data_payload" in stack.values:
        bound = report_data(APP_DATA, stack.text("report_data_payload").encode())
        if bound != evidence.report_data:
            raise EvidenceMalformedError("evidence: want the report data that its payload makes, got another")
    return evidence


def serialise_evidence_v1(evidence: Evidence) -> bytes:
    """Write evidence in the V1 form, for an app that is not a pod."""
    packed: bytes = msgpack.packb(
        {
            "version": _VERSION,
            "platform": {
                "kind": _PLATFORM,
                "data": {"quote": list(evidence.quote), "event_log": [_packed(each) for each in evidence.event_log]},
            },
            "stack": {
                "kind": "dstack",
                "data": {
                    "report_data": list(evidence.report_data),
                    "runtime_events": [
                        {"event": each.name, "payload": each.payload, **_version(each)}
                        for each in evidence.runtime_events
                    ],
                    "config": evidence.config,
                },
            },
        }
    )
    return packed


def _unpack(raw: bytes) -> object:
    if len(raw) > MAX_EVIDENCE:
        raise EvidenceMalformedError(f"evidence: want at most {MAX_EVIDENCE} bytes, got {len(raw)}")
    budget = _Budget()
    try:
        return msgpack.unpackb(
            raw,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=budget.map,
            list_hook=budget.list,
            max_str_len=MAX_EVIDENCE,
            max_bin_len=MAX_EVIDENCE,
            max_array_len=_MAX_LIST,
            max_map_len=_MAX_MAP,
            max_ext_len=0,
        )
    except msgpack.ExtraData as exc:
        raise EvidenceMalformedError(f"evidence: {len(exc.extra)} unexpected bytes after it") from exc
    except (ValueError, msgpack.UnpackException, RecursionError) as exc:
        raise EvidenceMalformedError(f"evidence: want one bounded MessagePack value: {str(exc)[:120]}") from exc


class _Budget:
    """Counts containers while they are read, so that a small document cannot fill the memory."""

    def __init__(self) -> None:
        self._containers = 0
        self._elements = 0

    def list(self, items: list[object]) -> list[object]:
        self._count(len(items))
        return items

    def map(self, pairs: Iterable[tuple[object, object]]) -> dict[str, object]:
        members: dict[str, object] = {}
        for name, value in pairs:
            if not isinstance(name, str):
                raise ValueError("want the names of members to be text")
            if name in members:
                raise ValueError(f"member {name[:80]!r} appears twice")
            members[name] = value
        self._count(len(members))
        return members

    def _count(self, elements: int) -> None:
        self._containers += 1
        self._elements += elements
        if self._containers > _MAX_CONTAINERS or self._elements > _MAX_ELEMENTS:
            raise ValueError(f"want at most {_MAX_CONTAINERS} lists and maps and {_MAX_ELEMENTS} elements in them")


def _members(value: object, what: str) -> Members:
    return Members.of(value, what=what, error=EvidenceMalformedError)


def _kind(document: Members, name: str, kinds: dict[str, set[str]]) -> Members:
    """The data of a tagged member, which has exactly the fields of its kind."""
    tagged = _members(document.values.get(name), f"evidence.{name}")
    tagged.refuse_others(frozenset({"kind", "data"}))
    kind = tagged.text("kind")
    if kind not in kinds:
        raise EvidenceMalformedError(f"{tagged.what}: want the kind {' or '.join(kinds)}, got {kind[:40]!r}")
    data = _members(tagged.values.get("data"), f"{tagged.what}.data")
    data.refuse_others(frozenset(kinds[kind]))
    missing = sorted(kinds[kind] - data.values.keys())
    if missing:
        raise EvidenceMalformedError(f"{data.what}: member {missing[0]!r} is missing")
    return data


def _list(members: Members, name: str, read: Callable[[Members], Any]) -> tuple[Any, ...]:
    items, what = members.values.get(name), f"{members.what}.{name}"
    if not isinstance(items, list) or len(items) > MAX_EVENTS:
        raise EvidenceMalformedError(f"{what}: want a list of at most {MAX_EVENTS} events")
    return tuple(read(_members(item, f"{what}[{at}]")) for at, item in enumerate(items))


def _event(members: Members) -> Event:
    members.refuse_others(_EVENT)
    return Event(
        imr=members.integer("imr", maximum=_MAX_U32),
        event_type=members.integer("event_type", maximum=_MAX_U32),
        digest=_octets(members, "digest"),
        name=members.text("event"),
        payload=_octets(members, "event_payload"),
        version=members.integer("version", 1, maximum=2),
        preimage=bytes_from_hex(members.text("preimage"), what="preimage") if members.has("preimage") else None,
    )


def _runtime_event(members: Members) -> RuntimeEvent:
    members.refuse_others(_RUNTIME_EVENT)
    version = members.integer("version", 1, maximum=2)
    return RuntimeEvent(members.text("event"), _octets(members, "payload"), version)


def _octets(members: Members, name: str) -> bytes:
    """A byte string, an array of numbers below 256, or text."""
    value = members.values.get(name)
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list) and all(type(number) is int and 0 <= number < 256 for number in value):
        return bytes(value)
    raise EvidenceMalformedError(f"{members.what}: {name}: want bytes, as a byte string or an array of numbers")


def _packed(event: Event) -> dict[str, object]:
    packed: dict[str, object] = {
        "imr": event.imr,
        "event_type": event.event_type,
        "digest": bytes(event.digest),
        "event": event.name,
        "event_payload": event.payload,
        **_version(event),
    }
    return packed if event.preimage is None else packed | {"preimage": event.preimage.hex()}


def _version(event: Event | RuntimeEvent) -> dict[str, int]:
    return {} if event.version == 1 else {"version": event.version}
