"""The kinds of the folder `guest`: compose hashes, event digests, replayed and predicted registers, identities."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from dstack.attestation.appraise import system_payloads
from dstack.attestation.envelope import open_envelope
from dstack.attestation.pck import claimed_platform
from dstack.attestation.quote import Quote, TdReport, parse_quote
from dstack.attestation.report_data import padded_report_data, report_data
from dstack.measurement.compose import compose_hash, default_app_id
from dstack.measurement.event_log import (
    RUNTIME_EVENT_TYPE,
    RuntimeEvent,
    replay_event_log,
    runtime_event_digest,
    runtime_event_preimage,
    runtime_events,
)
from dstack.measurement.identities import (
    NO_KEY_PROVIDER,
    derive_instance_id,
    device_id,
    mr_aggregated,
    mr_key_provider,
    mr_system,
)
from dstack.measurement.rtmr3 import (
    BOOT_MR_DONE,
    SEQUENCES,
    SYSTEM_READY,
    BootInputs,
    boot_events,
    predict_legacy_rtmr3,
    predict_rtmr3,
    sequence_of_release,
    split_at_boot_mr_done,
)
from dstack.values import AppId, ComposeHash, Digest32, InstanceId, OsImageHash, Register
from vectors.cases import WHOLE_FILE
from vectors.compare import Computation, Computed, Part, Sections

_bytes = bytes.fromhex

_REGISTERS = ("0", "1", "2", "3")

_BOOT_INPUTS: Mapping[str, type[Any]] = {
    "app_id": AppId,
    "compose_hash": ComposeHash,
    "instance_id": InstanceId,
    "key_provider_id": bytes,
    "os_image_hash": OsImageHash,
    "mr_kms": Digest32,
    "gpu_policy_hash": Digest32,
    "gpu_attestation": bytes,
    "rootfs_hash": Digest32,
    "ca_cert_hash": Digest32,
}


def _composed_text(text_base64: str) -> Computed:
    return _composed(base64.b64decode(text_base64, validate=True))


def _composed(raw: bytes) -> Computed:
    digest = compose_hash(raw)
    return {"compose_hash": digest.hex(), "default_app_id": default_app_id(digest).hex()}


def _event_type() -> Computed:
    return {"event_type": RUNTIME_EVENT_TYPE}


def _event(name: str, payload: str) -> Computed:
    first, second = (RuntimeEvent(name, _bytes(payload), version) for version in (1, 2))
    return {
        "preimage_v1": runtime_event_preimage(first).hex(),
        "digest_v1": runtime_event_digest(first).hex(),
        "preimage_v2": runtime_event_preimage(second).hex(),
        "digest_v2": runtime_event_digest(second).hex(),
    }


def _replayed(raw: bytes) -> Computed:
    """Everything that a captured quote and its log say."""
    evidence = open_envelope(raw).evidence
    quote = parse_quote(evidence.quote)
    report = _td_report(quote)
    registers = {"0": report.rtmr0, "1": report.rtmr1, "2": report.rtmr2, "3": report.rtmr3}
    replayed = replay_event_log(evidence.event_log)
    platform = claimed_platform(quote)
    return {
        "quote_rtmr": {name: register.hex() for name, register in registers.items()},
        "replay_matches": [name for name in _REGISTERS if replayed[int(name)] == registers[name]],
        "runtime_events": _plain(runtime_events(evidence.event_log)),
        "mr_td": report.mr_td.hex(),
        "mr_config_id": report.mr_config_id.hex(),
        "report_data": report.report_data.hex(),
        **_quote_identities(report, evidence.runtime_events),
        **_boot_time_identities(report, evidence.runtime_events),
        "ppid": platform.ppid.hex(),
        "device_id": device_id(platform.ppid).hex(),
        "fmspc": platform.fmspc.hex(),
        "quote_len": len(evidence.quote),
        "sig_data_len": int.from_bytes(evidence.quote[len(quote.signed) :][:4], "little"),
        "tee_tcb_svn": report.tee_tcb_svn.hex(),
        "td_attributes": report.td_attributes.hex(),
        "xfam": report.xfam.hex(),
        "qe_id_in_user_data": quote.user_data[:16].hex(),
    }


def _td_report(quote: Quote) -> TdReport:
    if not isinstance(quote.body, TdReport):
        raise TypeError("want a TDX quote, got an SGX quote")
    return quote.body


def _quote_identities(report: TdReport, events: Sequence[RuntimeEvent]) -> Computed:
    key_provider = mr_key_provider(system_payloads(events).get("key-provider"))
    return {
        "mr_key_provider": key_provider.hex(),
        "mr_system": _mr_system(report, key_provider).hex(),
        "mr_aggregated": _mr_aggregated(report, report.rtmr3).hex(),
    }


def _boot_time_identities(report: TdReport, events: Sequence[RuntimeEvent]) -> Computed:
    if all(each.name != BOOT_MR_DONE for each in events):
        return {}
    measured, _ = split_at_boot_mr_done(events)
    rtmr3 = predict_rtmr3(measured)
    return {
        "boottime.mr_key_provider": NO_KEY_PROVIDER.hex(),
        "boottime.mr_system": _mr_system(report, NO_KEY_PROVIDER).hex(),
        "boottime.mr_aggregated": _mr_aggregated(report, rtmr3).hex(),
        "boottime.rtmr3_at_boot_mr_done": rtmr3.hex(),
    }


def _mr_system(report: TdReport, key_provider: Digest32) -> Digest32:
    return mr_system(report.mr_td, report.rtmr0, report.rtmr1, report.rtmr2, key_provider)


def _mr_aggregated(report: TdReport, rtmr3: Register) -> Digest32:
    return mr_aggregated(
        *(report.mr_td, report.rtmr0, report.rtmr1, report.rtmr2, rtmr3),
        mr_config_id=report.mr_config_id,
        mr_owner=report.mr_owner,
        mr_owner_config=report.mr_owner_config,
    )


def _predicted(
    release: str, inputs: Mapping[str, Any], app_events: Sequence[Mapping[str, str]] | None, version: int | None
) -> Computed:
    """The boot's events from what goes in; what the app then adds cannot be predicted and is given."""
    sequence = release if release in SEQUENCES else sequence_of_release(release) or release
    boot = boot_events(sequence, _boot_inputs(inputs), version=version or 1)
    added = tuple(RuntimeEvent(each["event"], _bytes(each["payload"]), version or 1) for each in app_events or ())
    return {
        "inputs.upgraded_app_id": default_app_id(ComposeHash(_bytes(inputs["compose_hash"]))).hex(),
        "events": _plain(boot + added),
        "rtmr3": predict_rtmr3(boot + added).hex(),
        "rtmr3_boot_only": predict_rtmr3(boot).hex(),
    }


def _boot_inputs(inputs: Mapping[str, Any]) -> BootInputs:
    given = {name: value for name, value in inputs.items() if name != "upgraded_app_id"}
    for name, sized in _BOOT_INPUTS.items():
        if name in given:
            given[name] = sized(_bytes(given[name])) if given[name] else None
    hashes = tuple(Digest32(_bytes(each)) for each in given.pop("init_script_hashes", ()))
    given["key_provider_id"] = given.get("key_provider_id") or b""
    return BootInputs(**given, init_script_hashes=hashes)


def _after_system_ready(events: Sequence[Mapping[str, str]]) -> Sequence[Mapping[str, str]]:
    names = [each["event"] for each in events]
    return events[names.index(SYSTEM_READY) + 1 :] if SYSTEM_READY in names else ()


def _plain(events: Sequence[RuntimeEvent]) -> list[dict[str, str]]:
    return [{"event": each.name, "payload": each.payload.hex()} for each in events]


def _legacy_rtmr3(rootfs_hash: str, app_id: str, ca_cert_hash: str) -> Computed:
    given = (Digest32(_bytes(each)) for each in (rootfs_hash, app_id, ca_cert_hash))
    return {"rtmr3": predict_legacy_rtmr3(*given).hex()}


def _prefixed_report_data(prefix: str, content: str, hash_name: str) -> Computed:
    """An empty name means the default hash, as in the request of a client that names none."""
    names = (hash_name,) if hash_name else ()
    return {"report_data": report_data(prefix, _bytes(content), *names).hex()}


def _padded_report_data(content: str) -> Computed:
    return {"padded": padded_report_data(_bytes(content)).hex()}


def _prefixed_app_data(content: str) -> Computed:
    return {"report_data_a_prefixing_tappd_makes": report_data("app-data", _bytes(content)).hex()}


def _system(mrtd: str, rtmr0: str, rtmr1: str, rtmr2: str, key_provider_info: str | None) -> Computed:
    first, second, third, fourth = (Register(_bytes(each)) for each in (mrtd, rtmr0, rtmr1, rtmr2))
    key_provider = mr_key_provider(_bytes(key_provider_info) if key_provider_info else None)
    return {"mr_system": mr_system(first, second, third, fourth, key_provider).hex()}


def _aggregated(*registers: str | None) -> Computed:
    values = [Register(_bytes(each) if each else bytes(Register.SIZE)) for each in registers]
    measured = mr_aggregated(*values[:5], mr_config_id=values[5], mr_owner=values[6], mr_owner_config=values[7])
    return {"mr_aggregated": measured.hex()}


def _instance_id(seed: str, app_id: str) -> Computed:
    return {"instance_id": derive_instance_id(_bytes(seed), AppId(_bytes(app_id))).hex()}


def _bound_instance_id(seed: str, app_id: str, binding: str) -> Computed:
    derived = derive_instance_id(_bytes(seed), AppId(_bytes(app_id)), Digest32(_bytes(binding)))
    return {"instance_id_with_binding": derived.hex()}


KINDS: Mapping[str, Sections] = {
    "guest/compose_hash": {
        "cases": (Computation(("compose_utf8_base64",), _composed_text), Computation(("@file",), _composed)),
    },
    "guest/event_digest": {
        WHOLE_FILE: (Computation((), _event_type),),
        "cases": (Computation(("event", "payload"), _event),),
    },
    "guest/rtmr_replay": {"cases": (Computation(("@fixture",), _replayed),)},
    "guest/rtmr3_offline": {
        "cases": (
            Computation(
                ("version", "inputs"), _predicted, optional=(Part("events", _after_system_ready), "event_log_version")
            ),
        ),
    },
    "guest/rtmr3_legacy_replicatoor": {
        "cases": (Computation(("rootfs_hash", "app_id", "ca_cert_hash"), _legacy_rtmr3),),
    },
    "guest/report_data": {
        "cases": (Computation(("prefix", "content", "hash_algorithm"), _prefixed_report_data),),
        "get_quote_padding": (Computation(("report_data",), _padded_report_data),),
        "replicatoor": (Computation(("appdata_sent_to_tappd",), _prefixed_app_data),),
    },
    "guest/mr_identities": {
        "cases": (
            Computation(("mrtd", "rtmr0", "rtmr1", "rtmr2"), _system, optional=("key_provider_info",)),
            Computation(
                ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3"),
                _aggregated,
                optional=("mr_config_id", "mr_owner", "mr_owner_config"),
            ),
        ),
    },
    "guest/instance_id": {
        "cases": (
            Computation(("instance_id_seed", "app_id"), _instance_id),
            Computation(("instance_id_seed", "app_id", "platform_binding"), _bound_instance_id),
        ),
    },
}
