"""The kind `kms/attestation`: evidence in its forms, what its events fold into, and what the contracts are told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dstack.attestation.appraise import system_payloads
from dstack.attestation.evidence import Evidence, parse_evidence, serialise_evidence, strip_evidence
from dstack.attestation.evidence_v1 import serialise_evidence_v1
from dstack.attestation.quote import TdReport, parse_body
from dstack.measurement import identities
from dstack.measurement.event_log import Event, RuntimeEvent
from dstack.measurement.rtmr3 import predict_rtmr3, split_at_boot_mr_done
from dstack.measurement.vm_config import parse_vm_config
from dstack.values import Register, ReportData
from vectors.compare import Computation, Computed, Sections

_bytes = bytes.fromhex
_Lines = Sequence[Mapping[str, Any]]


def _written(
    quote: str, report_data: str, config: str, events: _Lines, runtime_events: _Lines, pod_payload: str | None
) -> Computed:
    """The evidence in each form that can carry it, from its parts."""
    evidence = Evidence(
        quote=_bytes(quote),
        event_log=tuple(_event(each) for each in events),
        runtime_events=tuple(_runtime_event(each) for each in runtime_events),
        report_data=ReportData(_bytes(report_data)),
        config=config,
    )
    # Pods are read, not written.
    forms: dict[str, object] = (
        {} if pod_payload is not None else {"v1_msgpack_hex": serialise_evidence_v1(evidence).hex()}
    )
    if all(each.version == 1 for each in (*evidence.event_log, *evidence.runtime_events)):
        forms["v0_scale_hex"] = serialise_evidence(evidence).hex()
        forms["v0_scale_stripped_hex"] = serialise_evidence(strip_evidence(evidence)).hex()
    return forms


def _event(line: Mapping[str, Any]) -> Event:
    digest, payload = _bytes(line["digest"]), _bytes(line["event_payload"])
    preimage = _bytes(line["preimage"]) if "preimage" in line else None
    return Event(line["imr"], line["event_type"], digest, line["event"], payload, line.get("version", 1), preimage)


def _runtime_event(line: Mapping[str, Any]) -> RuntimeEvent:
    return RuntimeEvent(line["event"], _bytes(line["payload"]), line.get("version", 1))


def _read(blob: str) -> Computed:
    """The parts, from the evidence in one form."""
    evidence = parse_evidence(_bytes(blob))
    return {
        "quote_hex": evidence.quote.hex(),
        "report_data": evidence.report_data.hex(),
        "config": evidence.config,
        "events": [
            {
                "imr": each.imr,
                "event_type": each.event_type,
                "digest": each.digest.hex(),
                "event": each.name,
                "event_payload": each.payload.hex(),
                **_version(each),
                **({} if each.preimage is None else {"preimage": each.preimage.hex()}),
            }
            for each in evidence.event_log
        ],
        "runtime_events": [
            {"event": each.name, "payload": each.payload.hex(), **_version(each)} for each in evidence.runtime_events
        ],
    }


def _version(event: Event | RuntimeEvent) -> dict[str, int]:
    return {} if event.version == 1 else {"version": event.version}


def _read_stripped(blob: str) -> Computed:
    """Of a stripped log only the rest of the evidence is the same."""
    return {name: value for name, value in _read(blob).items() if name != "events"}


def _registers(quote: str) -> Computed:
    report = _td_report(quote)
    names = {"mrtd": report.mr_td, "rtmr0": report.rtmr0, "rtmr1": report.rtmr1, "rtmr2": report.rtmr2}
    return {"registers": {name: register.hex() for name, register in names.items()}}


def _td_report(quote: str) -> TdReport:
    body = parse_body(_bytes(quote))
    if not isinstance(body, TdReport):
        raise TypeError("want a TD's quote")
    return body


def _measured(quote: str, config: str, lines: _Lines, ppid: str | None) -> Computed:
    """What the KMS derives: from all runtime events, and as of `boot-mr-done`."""
    report = _td_report(quote)
    events = tuple(_runtime_event(each) for each in lines)
    early = split_at_boot_mr_done(events)[0]
    payloads = system_payloads(events)
    measured = {
        "runtime": _measurement(report, events, payloads.get("key-provider")),
        "boottime": _measurement(report, early, None),
    }
    boot_infos = {
        "boot_info_head_runtime": ("teeVariant", "runtime"),
        "boot_info_head_boottime": ("teeVariant", "boottime"),
        "boot_info_0_5_8_runtime": ("attestationMode", "runtime"),
    }
    common = {
        "osImageHash": parse_vm_config(config).os_image_hash.hex(),
        "appId": payloads.get("app-id", b"").hex(),
        "composeHash": payloads.get("compose-hash", b"").hex(),
        "instanceId": payloads.get("instance-id", b"").hex(),
        # Nobody signed the quote: the status is the one that the case assumes.
        "tcbStatus": "UpToDate",
        "advisoryIds": [],
    }
    if ppid is not None:
        common["deviceId"] = identities.device_id(_bytes(ppid)).hex()
    infos = {
        name: {
            mode: "dstack-tdx",
            **common,
            "mrAggregated": measured[kind]["mr_aggregated"],
            "mrSystem": measured[kind]["mr_system"],
            "keyProviderInfo": measured[kind]["key_provider_info"],
        }
        for name, (mode, kind) in boot_infos.items()
    }
    return {**{f"measurements.{name}": value for name, value in measured.items()}, **infos}


def _measurement(report: TdReport, events: Sequence[RuntimeEvent], key_provider: bytes | None) -> dict[str, str]:
    rtmr3 = predict_rtmr3(events)
    provider = identities.mr_key_provider(key_provider)
    system = identities.mr_system(report.mr_td, report.rtmr0, report.rtmr1, report.rtmr2, provider)
    return {
        "rtmr3": rtmr3.hex(),
        "key_provider_info": (key_provider or b"").hex(),
        "mr_system": system.hex(),
        "mr_aggregated": _aggregated(replace(report, rtmr3=Register(rtmr3))).hex(),
    }


def _aggregated(report: TdReport) -> bytes:
    return identities.mr_aggregated(
        *(report.mr_td, report.rtmr0, report.rtmr1, report.rtmr2, report.rtmr3),
        mr_config_id=report.mr_config_id,
        mr_owner=report.mr_owner,
        mr_owner_config=report.mr_owner_config,
    )


KINDS: Mapping[str, Sections] = {
    "kms/attestation": {
        "cases": (
            Computation(
                ("quote_hex", "report_data", "config", "events", "runtime_events"),
                _written,
                optional=("report_data_payload",),
            ),
            Computation(("v0_scale_hex",), _read),
            Computation(("v1_msgpack_hex",), _read),
            Computation(("v0_scale_stripped_hex",), _read_stripped),
            Computation(("quote_hex",), _registers),
            Computation(("quote_hex", "config", "runtime_events"), _measured, optional=("device_ppid",)),
        ),
    },
}
