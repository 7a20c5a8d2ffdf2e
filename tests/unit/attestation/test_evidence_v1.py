"""Evidence as MessagePack with named fields (V1)."""

from __future__ import annotations

import json
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstack.attestation.evidence import Evidence, parse_evidence, serialise_evidence
from dstack.attestation.evidence_v1 import parse_evidence_v1, serialise_evidence_v1
from dstack.attestation.report_data import report_data
from dstack.errors import EvidenceMalformedError, InputError
from dstack.measurement.event_log import Event, RuntimeEvent, logged
from dstack.values import ReportData

SECOND = RuntimeEvent("app:event", b"\x01\xff", version=2)
LOG = (
    Event(0, 10, b"\x01" * 48, "acpi-loader", b"ACPI DATA"),
    logged(RuntimeEvent("app-id", bytes(20))),
    logged(SECOND),
)
EVIDENCE = Evidence(
    b"a quote", LOG, (RuntimeEvent("app-id", bytes(20)), SECOND), ReportData(bytes(range(64))), '{"é":1}'
)


def tree(**changes: Any) -> dict[str, Any]:
    """The evidence as a tree that a test spoils; `platform__data__quote=x` changes an inner member."""
    document: dict[str, Any] = msgpack.unpackb(serialise_evidence_v1(EVIDENCE))
    for path, value in changes.items():
        *parents, name = path.split("__")
        inner = document
        for parent in parents:
            inner = inner[parent]
        inner[name] = value
    return document


def test_golden_evidence_is_read_and_written(shared_vectors):
    """Each golden V1 blob says what its V0 form says, and is written back to the same bytes."""
    for case in json.loads((shared_vectors / "kms" / "attestation.json").read_text())["cases"]:
        raw = bytes.fromhex(case["v1_msgpack_hex"])

        evidence = parse_evidence(raw)

        assert serialise_evidence(evidence).hex() == case["v0_scale_hex"]
        assert serialise_evidence_v1(evidence) == raw


def test_events_of_version_2_come_back():
    """What V0 cannot carry, V1 does: versions and preimages are the same after writing and reading."""
    assert parse_evidence(serialise_evidence_v1(EVIDENCE)) == EVIDENCE


@pytest.mark.parametrize("quote", [b"a quote", "a quote", list(b"a quote")])
def test_bytes_are_taken_in_three_forms(quote):
    """A byte field may be an array of numbers, a byte string or text."""
    assert parse_evidence_v1(msgpack.packb(tree(platform__data__quote=quote))) == EVIDENCE


def test_a_pods_report_data_is_that_of_its_payload():
    """In the stack of a pod the report data must be what the payload makes; then it is read."""
    bound = report_data("app-data", b"hello")
    data = {**tree()["stack"]["data"], "report_data": list(bound), "report_data_payload": "hello"}

    assert parse_evidence_v1(msgpack.packb(tree(stack={"kind": "dstack-pod", "data": data}))).report_data == bound
    with pytest.raises(EvidenceMalformedError, match="want the report data that its payload makes"):
        parse_evidence_v1(
            msgpack.packb(tree(stack={"kind": "dstack-pod", "data": {**data, "report_data_payload": ""}}))
        )


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (tree(version=2), "want version 1, got 2"),
        (tree(more=1), "unknown member 'more'"),
        (tree(platform={"kind": "sev-snp", "data": {}}), "want the kind tdx, got 'sev-snp'"),
        (tree(stack={"kind": "vm", "data": {}}), "want the kind dstack or dstack-pod, got 'vm'"),
        (tree(platform__data={}), "member 'event_log' is missing"),
        (tree(platform__data__tpm_quote=b""), "unknown member 'tpm_quote'"),
        (tree(platform__data__quote=[256]), "quote: want bytes"),
        (tree(platform__data__quote=[True]), "quote: want bytes"),
        (tree(platform__data__event_log=[{}] * 5000), "want a list of at most 4096 events"),
        (tree(stack__data__report_data=b"short"), "ReportData: want 64 bytes, got 5"),
        (tree(stack__data__config=b"bytes"), "config: want a string"),
        (
            tree(stack__data__runtime_events=[{"event": "x", "payload": b"", "version": 3}]),
            "version: want 0 to 2, got 3",
        ),
        ([], "want a JSON object, got an array"),
    ],
)
def test_other_documents_are_refused(document, message):
    """Another version, kind, member or type is refused, naming what was wanted and what came."""
    with pytest.raises(InputError, match=message):
        parse_evidence_v1(msgpack.packb(document))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (serialise_evidence_v1(EVIDENCE) + b"\0", "1 unexpected bytes after it"),
        (serialise_evidence_v1(EVIDENCE)[:-1], "want one bounded MessagePack value"),
        (b"\x82\xa7version\x01\xa7version\x01", "member 'version' appears twice"),
        (b"\x81\x01\x01", "want one bounded MessagePack value"),
        (b"\x82\xc4\x01a\x01\xa1b\x01", "want the names of members to be text"),
        (b"\x81\xa1x\xc7\x01\x05\x00", "want one bounded MessagePack value"),
        (b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0", "want one bounded MessagePack value"),
        (b"\x81\xa1x\xdc\xff\xff" + b"\x90" * 65_535, "want at most 16384 lists and maps"),
        (b"\x81\xa1x\xdd\x00\xff\xff\xff" + bytes(100), "want one bounded MessagePack value"),
        (b"\x81\xa1x\xa1\xff", "want one bounded MessagePack value"),
    ],
    ids=[
        *("followed", "cut", "repeated", "number as name", "bytes as name"),
        *("extension", "deep", "many", "endless", "no UTF-8"),
    ],
)
def test_hostile_encodings_are_refused(raw, message):
    """Bytes left over or cut off, repeated members, extensions, deep, many or endless containers, and bad text."""
    with pytest.raises(EvidenceMalformedError, match=message):
        parse_evidence_v1(raw)


@given(data=st.data())
def test_a_changed_byte_raises_our_errors_only(data):
    """Any byte changed: the evidence is read, or refused by an input error."""
    raw = bytearray(serialise_evidence_v1(EVIDENCE))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        parse_evidence(bytes(raw))
    except InputError:
        return
