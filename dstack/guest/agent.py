"""The guest agent's answers (guest.md 4.3): decisions over a platform and the keys of a guest that is up.

Whoever reaches the agent's socket is the app and may have all of this.
"""

from __future__ import annotations

import hashlib
import json
import threading
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.evidence import Evidence, serialise_evidence
from dstack.attestation.quote import TdReport, parse_quote
from dstack.attestation.report_data import padded_report_data
from dstack.errors import MessageMalformedError, SignatureUntrustedError
from dstack.guest.boot import Booted
from dstack.guest.kms_client import KmsTrust
from dstack.guest.platform import Platform, platform_evidence
from dstack.guest.tls_key import TlsKeys
from dstack.keys.data_signatures import parse_algorithm, public_key_of, sign_data, verify_data
from dstack.keys.derivation import derive_purpose_key
from dstack.keys.signature_chain import sign_purpose_key
from dstack.measurement.event_log import MAX_EVENTS, MAX_LOG_BYTES, RuntimeEvent, logged, serialise_event_log
from dstack.measurement.identities import mr_aggregated
from dstack.measurement.rtmr3 import SYSTEM_EVENTS
from dstack.measurement.vm_config import parse_vm_config
from dstack.values import ReportData
from dstack.wire.guest import (
    AttestResponse,
    EmitEventRequest,
    GetKeyRequest,
    GetKeyResponse,
    GetQuoteRequest,
    GetQuoteResponse,
    GetTlsKeyRequest,
    GetTlsKeyResponse,
    InfoResponse,
    SignRequest,
    SignResponse,
    VerifyRequest,
    VerifyResponse,
    VersionResponse,
)

VERSION = "0.6.0"
MAX_EVENT_NAME = 256
_SIGNING_PATH, _SIGNING_PURPOSE = "vms", "signing"

# The agent does not verify its own quote, so it does not know the machine's PPID; upstream answers this.
_UNKNOWN_DEVICE = hashlib.sha256(b"").digest()


class GuestAgent:
    """Answers the app. Quotes and events do not overlap, so a quote always comes with the log it was made from."""

    def __init__(
        self,
        platform: Platform,
        booted: Booted,
        *,
        trust: KmsTrust | None = None,
    ) -> None:
        """Take what is up; *trust* is what the KMS's own evidence must pass when it is asked for certificates."""
        self._platform = platform
        self._booted = booted
        self._lock = threading.Lock()
        self._tls_keys = TlsKeys(booted, self._evidence, lambda: datetime.now(UTC), trust)

    def get_tls_key(
        self, request: GetTlsKeyRequest, key: ec.EllipticCurvePrivateKey | None = None
    ) -> GetTlsKeyResponse:
        """A fresh key for TLS, or *key*, and the chain of its certificate."""
        return self._tls_keys.issue(request, key)

    def get_quote(self, request: GetQuoteRequest) -> GetQuoteResponse:
        """A quote over up to 64 bytes of the app's choice, padded with zeros."""
        evidence = self._evidence(_report_data(request))
        return GetQuoteResponse(
            quote=evidence.quote,
            event_log=serialise_event_log(evidence.event_log),
            report_data=evidence.report_data,
            vm_config=evidence.config,
        )

    def attest(self, request: GetQuoteRequest) -> AttestResponse:
        """The same as evidence in the versioned form."""
        return AttestResponse(attestation=serialise_evidence(self._evidence(_report_data(request))))

    def get_key(self, request: GetKeyRequest) -> GetKeyResponse:
        """The key of a path, and who vouches for it. Ed25519 and secp256k1 keys of one path are the same bytes."""
        keys = self._booted.provided.keys
        key = derive_purpose_key(keys.k256_key, request.path)
        public_key = public_key_of(parse_algorithm(request.algorithm), key)
        signature = sign_purpose_key(keys.k256_key, request.purpose, public_key)
        return GetKeyResponse(key=key, signature_chain=(signature, keys.k256_signature))

    def sign(self, request: SignRequest) -> SignResponse:
        """Sign data with the key of the path `vms`; the chain says who vouches for that key."""
        algorithm = parse_algorithm(request.algorithm)
        vouched = self.get_key(GetKeyRequest(_SIGNING_PATH, _SIGNING_PURPOSE, request.algorithm))
        signature = sign_data(algorithm, vouched.key, request.data)
        return SignResponse(signature, (signature, *vouched.signature_chain), public_key_of(algorithm, vouched.key))

    def verify(self, request: VerifyRequest) -> VerifyResponse:
        """Whether a key signed data. Says nothing of whose key that is."""
        algorithm = parse_algorithm(request.algorithm)
        try:
            verify_data(algorithm, request.public_key, request.data, request.signature)
        except SignatureUntrustedError:
            return VerifyResponse(valid=False)
        return VerifyResponse(valid=True)

    def emit_event(self, request: EmitEventRequest) -> None:
        """Extend RTMR3 by an event of the app's.

        Raises:
            MessageMalformedError: The name is empty, too long or one of the system's; or the log would grow past what
                readers of logs take.
        """
        name = request.event
        if not 0 < len(name) <= MAX_EVENT_NAME:
            raise MessageMalformedError(f"event: want a name of 1 to {MAX_EVENT_NAME} characters, got {len(name)}")
        if name in SYSTEM_EVENTS:
            raise MessageMalformedError(f"event: {name!r} is a name of the system's")
        event = RuntimeEvent(name, request.payload, self._booted.app_compose.event_log_version)
        with self._lock:
            log = (*self._platform.event_log(), logged(event))
            if len(log) > MAX_EVENTS or len(serialise_event_log(log).encode()) > MAX_LOG_BYTES:
                raise MessageMalformedError("event: the event log is full")
            self._platform.extend(event)

    def info(self) -> InfoResponse:
        """What this guest is, by its own unverified account."""
        booted = self._booted
        evidence = self._evidence(padded_report_data(b""))
        tcb_info = self._tcb_info(evidence)
        return InfoResponse(
            app_id=booted.app_id,
            instance_id=booted.instance_id or b"",
            tcb_info=json.dumps(tcb_info),
            app_name=booted.app_compose.name,
            device_id=_UNKNOWN_DEVICE,
            mr_aggregated=bytes.fromhex(tcb_info["mr_aggregated"]),
            os_image_hash=bytes.fromhex(tcb_info["os_image_hash"]),
            key_provider_info=booted.key_provider_info.decode(),
            compose_hash=booted.app_compose.compose_hash,
            vm_config=evidence.config,
        )

    def version(self) -> VersionResponse:
        """Which protocol this agent speaks."""
        return VersionResponse(version=VERSION)

    def _evidence(self, report_data: ReportData) -> Evidence:
        with self._lock:
            return platform_evidence(self._platform, report_data)

    def _tcb_info(self, evidence: Evidence) -> dict[str, Any]:
        """Registers as the quote has them, and what explains them; spelled as upstream spells it."""
        report = parse_quote(evidence.quote).body
        if not isinstance(report, TdReport):
            raise MessageMalformedError("platform: want the quote of a TD, got that of an SGX enclave")
        aggregated = mr_aggregated(
            report.mr_td,
            report.rtmr0,
            report.rtmr1,
            report.rtmr2,
            report.rtmr3,
            mr_config_id=report.mr_config_id,
            mr_owner=report.mr_owner,
            mr_owner_config=report.mr_owner_config,
        )
        return {
            "mrtd": report.mr_td.hex(),
            "rtmr0": report.rtmr0.hex(),
            "rtmr1": report.rtmr1.hex(),
            "rtmr2": report.rtmr2.hex(),
            "rtmr3": report.rtmr3.hex(),
            "mr_aggregated": aggregated.hex(),
            "os_image_hash": parse_vm_config(evidence.config).os_image_hash.hex(),
            "compose_hash": self._booted.app_compose.compose_hash.hex(),
            "device_id": _UNKNOWN_DEVICE.hex(),
            "event_log": json.loads(serialise_event_log(evidence.event_log)),
            "app_compose": self._booted.app_compose.raw.decode(),
        }


def _report_data(request: GetQuoteRequest) -> ReportData:
    if len(request.report_data) > ReportData.SIZE:
        raise MessageMalformedError("Report data is too long")
    return padded_report_data(request.report_data)
