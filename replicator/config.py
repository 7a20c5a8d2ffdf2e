"""Settings of the replicator, from one TOML file. Who may change each, and what they gain: docs/settings-replicator.md.

The file belongs into the measured app-compose: whoever writes it decides whom this node trusts.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from dstack.attestation.roots import INTEL_ROOTS, TrustedRoots, simulated_root
from dstack.attestation.tcb import TcbStatus
from dstack.attestation.verification_policy import VerificationPolicy, accept_statuses
from dstack.errors import ConfigError
from dstack.measurement.strict_json import Members
from dstack.transport.collateral_fetch import endpoint_url
from dstack.transport.listener import CONNECTIONS_OF_PEER, MAX_CONNECTIONS
from dstack.web.urls import split_url
from replicator.acpi_tables import CAPTURED, FROM_LOG
from replicator.containers import Container, read_containers
from replicator.documents import MAX_INTEGER, Address, Law
from replicator.receipts import MAX_RECEIPTS, MOST_RECEIPTS

MAX_FILE = 64 << 10
MAX_URL = 2048
MAX_URLS = 9
MAX_AGE = timedelta(hours=1)
_BLOCK_TAGS = ("finalized", "safe", "latest")

_KNOWN = {
    "http": frozenset({"host", "port", "connections_of_peer"}),
    "files": frozenset({"secure_file", "receipts_dir", "max_receipts", "bootstrap_request"}),
    "agent": frozenset({"socket"}),
    "chain": frozenset(
        {"rpc_urls", "operator", "kms_auth", "chain_id", "block_tag", "agreement", "max_age_seconds"}
        | {"insecure_endpoints_from_configure", "require_genesis"}
    ),
    "attestation": frozenset(
        {"collateral_dir", "collateral_urls", "accepted_tcb_statuses", "accepted_tcb_statuses_until", "root_ca"}
        | {"insecure_allow_external_trust_anchors", "require_listed_registers", "acpi_tables"}
    ),
    "protocol": frozenset({"old_forms"}),
    "getkey": frozenset({"containers"}),
}


@dataclass(frozen=True, slots=True)
class ChainSettings:
    """Where the decisions come from.

    Attributes:
        law: The contracts; always from the settings file.
        rpc_urls: The endpoints; empty where they are left to `/configure`.
        agreement: How many endpoints must agree; None for more than half.
        max_age: How old the agreed block may be; None for chains whose clock is set by hand.
        endpoints_from_configure: Whoever reaches the port may choose the endpoints.
        require_listed_registers: Ask for the exact registers, too.
        requires_genesis: Hand nothing over before the chain records the app's genesis.
    """

    law: Law
    rpc_urls: tuple[str, ...] = ()
    block_tag: str = "finalized"
    agreement: int | None = None
    max_age: timedelta | None = MAX_AGE
    endpoints_from_configure: bool = False
    require_listed_registers: bool = False
    requires_genesis: bool = True

    def at(self, rpc_urls: tuple[str, ...]) -> ChainSettings:
        """The same law at these endpoints."""
        return replace(self, rpc_urls=rpc_urls)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings.

    Attributes:
        bootstrap_request: Where the host asks a node without a secure file to make the first one; None for nowhere.
        acpi_tables: As `acpi_tables.tables_from` takes it; empty only where `chain.require_listed_registers` is set.
    """

    host: str
    port: int
    connections_of_peer: int
    secure_file: Path
    receipts_dir: Path
    max_receipts: int
    bootstrap_request: Path | None
    agent_socket: Path | None
    chain: ChainSettings
    collateral_dir: Path
    collateral_urls: tuple[str, ...]
    acpi_tables: str
    roots: TrustedRoots
    policy: VerificationPolicy
    old_forms: bool
    containers: tuple[Container, ...]


def load_settings(path: Path) -> Settings:
    """Read the settings file.

    Raises:
        ConfigError: It cannot be read, is not TOML, or a setting is unknown, missing or out of range.
    """
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    if len(raw) > MAX_FILE:
        raise ConfigError(f"{path}: want at most {MAX_FILE} bytes, got {len(raw)}")
    try:
        return parse_settings(raw)
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from exc


def parse_settings(raw: bytes) -> Settings:
    """As `load_settings`, from the file's bytes."""
    tables = _tables(raw)
    http, files, agent, attestation = (tables[name] for name in ("http", "files", "agent", "attestation"))
    return Settings(
        host=http.text("host", "127.0.0.1"),
        port=http.integer("port", 4001, maximum=65535),
        connections_of_peer=_positive(http, "connections_of_peer", CONNECTIONS_OF_PEER, maximum=MAX_CONNECTIONS),
        secure_file=Path(files.text("secure_file")),
        receipts_dir=Path(files.text("receipts_dir")),
        max_receipts=_positive(files, "max_receipts", MAX_RECEIPTS, maximum=MOST_RECEIPTS),
        bootstrap_request=_bootstrap_request(files, tables["chain"]),
        agent_socket=Path(agent.text("socket")) if agent.has("socket") else None,
        chain=_chain(tables["chain"], attestation),
        collateral_dir=Path(attestation.text("collateral_dir")),
        collateral_urls=tuple(map(endpoint_url, attestation.texts("collateral_urls"))),
        acpi_tables=_acpi_tables(attestation),
        roots=_roots(attestation),
        policy=VerificationPolicy(relaxations=accept_statuses(_statuses(attestation), _until(attestation))),
        old_forms=tables["protocol"].flag("old_forms", False),
        containers=read_containers(tables["getkey"].values.get("containers", [])),
    )


def checked_urls(urls: tuple[str, ...], *, what: str) -> tuple[str, ...]:
    """1 to `MAX_URLS` http or https URLs without white space or control characters.

    Raises:
        ConfigError: They are not; no URL is repeated in the error, for it may hold a credential.
    """
    if not 1 <= len(urls) <= MAX_URLS:
        raise ConfigError(f"{what}: want 1 to {MAX_URLS} URLs, got {len(urls)}")
    for url in urls:
        plain = url.isascii() and url.isprintable() and " " not in url and len(url) <= MAX_URL
        if not plain or not url.startswith(("http://", "https://")):
            raise ConfigError(f"{what}: want http or https URLs of at most {MAX_URL} plain characters")
        try:
            split_url(url)
        except ValueError as exc:
            raise ConfigError(f"{what}: {exc}") from exc
    return urls


def _tables(raw: bytes) -> dict[str, Members]:
    try:
        content: dict[str, Any] = tomllib.loads(raw.decode())
    except ValueError as exc:
        raise ConfigError(f"settings: want TOML in UTF-8: {exc}") from exc
    unknown = sorted(content.keys() - _KNOWN.keys())
    if unknown:
        raise ConfigError(f"settings: unknown table {unknown[0][:80]!r}")
    tables = {name: Members.of(content.get(name, {}), what=name, error=ConfigError) for name in _KNOWN}
    for name, members in tables.items():
        _refuse_unknown(members, _KNOWN[name])
    return tables


def _refuse_unknown(members: Members, known: frozenset[str]) -> None:
    unknown = min(members.values.keys() - known, default=None)
    if unknown is not None:
        close = difflib.get_close_matches(unknown[:80], sorted(known), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ConfigError(f"{members.what}: unknown setting {unknown[:80]!r}{hint}")


def _positive(members: Members, name: str, default: int, *, maximum: int) -> int:
    number = members.integer(name, default, maximum=maximum)
    if number == 0:
        raise ConfigError(f"{name}: want 1 to {maximum}, got 0")
    return number


def _chain(members: Members, attestation: Members) -> ChainSettings:
    block_tag, urls = members.text("block_tag", "finalized"), members.texts("rpc_urls")
    from_configure = members.flag("insecure_endpoints_from_configure", False)
    if block_tag not in _BLOCK_TAGS:
        raise ConfigError(f"block_tag: want one of {', '.join(_BLOCK_TAGS)}, got {block_tag[:40]!r}")
    if bool(urls) == from_configure:
        raise ConfigError("chain: want either rpc_urls or insecure_endpoints_from_configure = true")
    seconds = members.integer("max_age_seconds", int(MAX_AGE.total_seconds()), maximum=MAX_INTEGER)
    return ChainSettings(
        law=Law(
            chain_id=members.integer("chain_id", maximum=MAX_INTEGER),
            operator=members.sized("operator", Address),
            contract=members.sized("kms_auth", Address),
        ),
        rpc_urls=checked_urls(urls, what="rpc_urls") if urls else (),
        block_tag=block_tag,
        agreement=members.integer("agreement", maximum=MAX_URLS) if members.has("agreement") else None,
        max_age=timedelta(seconds=seconds) if seconds else None,
        endpoints_from_configure=from_configure,
        require_listed_registers=attestation.flag("require_listed_registers", False),
        requires_genesis=members.flag("require_genesis", True),
    )


def _bootstrap_request(files: Members, chain: Members) -> Path | None:
    if not files.has("bootstrap_request"):
        return None
    if not chain.texts("rpc_urls"):
        raise ConfigError(
            "bootstrap_request: want chain.rpc_urls beside it: the chain says whether there is a first one"
        )
    return Path(files.text("bootstrap_request"))


def _acpi_tables(members: Members) -> str:
    source = members.text("acpi_tables", "")
    if not source and not members.flag("require_listed_registers", False):
        raise ConfigError(
            f"acpi_tables: want {CAPTURED}PATH, or require_listed_registers = true, or {FROM_LOG}: "
            "a host chooses its guest's ACPI tables, and nothing else tells which ones"
        )
    if source and source != FROM_LOG and not source.removeprefix(CAPTURED).startswith("/"):
        raise ConfigError(f"acpi_tables: want {CAPTURED}PATH with a whole path, or {FROM_LOG}")
    return source


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
