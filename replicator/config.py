"""Settings of the replicator, from one TOML file. Who may change each, and what they gain: docs/settings-replicator.md.

The file belongs into the measured app-compose: whoever writes it decides whom this node trusts.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dstack.attestation.roots import INTEL_ROOTS, TrustedRoots, simulated_root
from dstack.attestation.tcb import TcbStatus
from dstack.attestation.verification_policy import VerificationPolicy, accept_statuses
from dstack.errors import ConfigError
from dstack.measurement.strict_json import Members, parse_json
from replicator.documents import MAX_INTEGER, Address

_MAX_FILE = 64 << 10
_MAX_TEXT = 2048
_BLOCK_TAGS = ("finalized", "safe", "latest")

_KNOWN = {
    "http": frozenset({"host", "port"}),
    "files": frozenset({"secure_file", "receipts_dir"}),
    "agent": frozenset({"socket"}),
    "chain": frozenset({"rpc_url", "kms_auth", "chain_id", "block_tag"}),
    "attestation": frozenset(
        {
            "collateral_dir",
            "accepted_tcb_statuses",
            "accepted_tcb_statuses_until",
            "root_ca",
            "insecure_allow_external_trust_anchors",
        }
    ),
}


@dataclass(frozen=True, slots=True)
class ChainSettings:
    """Where the decisions come from; `chain_id` is None where any chain will do."""

    rpc_url: str
    kms_auth: Address
    block_tag: str = "finalized"
    chain_id: int | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings; `chain` is None where the file leaves it to `/configure`."""

    host: str
    port: int
    secure_file: Path
    receipts_dir: Path
    agent_socket: str
    chain: ChainSettings | None
    collateral_dir: Path
    roots: TrustedRoots
    policy: VerificationPolicy


def load_settings(path: Path) -> Settings:
    """Read the settings file.

    Raises:
        ConfigError: It cannot be read, is not TOML, or a setting is unknown, missing or out of range.
    """
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    if len(raw) > _MAX_FILE:
        raise ConfigError(f"{path}: want at most {_MAX_FILE} bytes, got {len(raw)}")
    return parse_settings(raw)


def parse_settings(raw: bytes) -> Settings:
    """As `load_settings`, from the file's bytes."""
    tables = _tables(raw)
    http, files, attestation = tables["http"], tables["files"], tables["attestation"]
    return Settings(
        host=http.text("host", "127.0.0.1"),
        port=http.integer("port", 4001, maximum=65535),
        secure_file=Path(files.text("secure_file")),
        receipts_dir=Path(files.text("receipts_dir")),
        agent_socket=tables["agent"].text("socket", "/var/run/dstack.sock"),
        chain=_chain(tables["chain"]) if tables["chain"].values else None,
        collateral_dir=Path(attestation.text("collateral_dir")),
        roots=_roots(attestation),
        policy=VerificationPolicy(relaxations=accept_statuses(_statuses(attestation), _until(attestation))),
    )


def parse_configure(raw: bytes) -> ChainSettings:
    """Read the body of `/configure`: a JSON object with `rpc_url` and `kms_auth`, and nothing else.

    Raises:
        ConfigError: It is not of that form.
    """
    members = Members.of(
        parse_json(raw, what="configure", limit=_MAX_FILE, error=ConfigError), what="configure", error=ConfigError
    )
    members.refuse_others(frozenset({"rpc_url", "kms_auth"}))
    return _chain(members)


def _tables(raw: bytes) -> dict[str, Members]:
    try:
        document: dict[str, Any] = tomllib.loads(raw.decode())
    except ValueError as exc:
        raise ConfigError(f"settings: want TOML in UTF-8: {exc}") from exc
    unknown = sorted(document.keys() - _KNOWN.keys())
    if unknown:
        raise ConfigError(f"settings: unknown table {unknown[0][:80]!r}")
    tables = {name: Members.of(document.get(name, {}), what=name, error=ConfigError) for name in _KNOWN}
    for name, members in tables.items():
        members.refuse_others(_KNOWN[name])
    return tables


def _chain(members: Members) -> ChainSettings:
    rpc_url, block_tag = members.text("rpc_url"), members.text("block_tag", "finalized")
    if not rpc_url.startswith(("http://", "https://")) or len(rpc_url) > _MAX_TEXT:
        raise ConfigError(f"rpc_url: want an http or https URL of at most {_MAX_TEXT} characters")
    if block_tag not in _BLOCK_TAGS:
        raise ConfigError(f"block_tag: want one of {', '.join(_BLOCK_TAGS)}, got {block_tag[:40]!r}")
    return ChainSettings(
        rpc_url=rpc_url,
        kms_auth=members.sized("kms_auth", Address),
        block_tag=block_tag,
        chain_id=members.integer("chain_id", maximum=MAX_INTEGER) if members.has("chain_id") else None,
    )


def _roots(members: Members) -> TrustedRoots:
    """Intel's root, or the one external root that the settings name and explicitly allow."""
    path = members.text("root_ca", "")
    if not path:
        return INTEL_ROOTS
    if not members.flag("insecure_allow_external_trust_anchors", False):
        raise ConfigError("root_ca: want insecure_allow_external_trust_anchors = true beside it")
    try:
        return TrustedRoots((simulated_root(Path(path).read_bytes()),))
    except OSError as exc:
        raise ConfigError(f"root_ca: {path} cannot be read: {exc.strerror}") from exc


def _statuses(members: Members) -> frozenset[TcbStatus]:
    names = members.texts("accepted_tcb_statuses") or (TcbStatus.UP_TO_DATE.value,)
    try:
        return frozenset(TcbStatus(name) for name in names)
    except ValueError as exc:
        raise ConfigError(
            f"accepted_tcb_statuses: want some of {', '.join(status.value for status in TcbStatus)}"
        ) from exc


def _until(members: Members) -> datetime | None:
    """The end of every acceptance beside UpToDate: a TOML time with a zone."""
    until = members.values.get("accepted_tcb_statuses_until")
    if until is None:
        return None
    if not isinstance(until, datetime) or until.tzinfo is None:
        raise ConfigError("accepted_tcb_statuses_until: want a time with a zone, such as 2027-01-15T08:00:00Z")
    return until
