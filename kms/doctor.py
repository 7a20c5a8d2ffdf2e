"""What can be wrong around a KMS, looked at from outside of it; every finding says its fix.

Nothing is changed, except that collateral which had to be fetched is kept as the KMS itself would keep it.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from http.client import OK
from pathlib import Path

import httpx

from dstack.attestation.appraise import Appraisal
from dstack.attestation.evidence import Evidence
from dstack.attestation.quote import parse_quote
from dstack.chain.bounded_http import EndpointError
from dstack.chain.kms_auth import KmsAuthReader
from dstack.chain.rpc import Request, RpcEndpoint
from dstack.chain.rpc_answers import block_of, block_request, number_of
from dstack.errors import DecisionLogUnavailableError, DstackError, ImageUnavailableError, UnavailableError
from dstack.keys.pem import load_certificate
from dstack.policy import Denied, boot_info
from dstack.transport.agent import AgentClient
from dstack.transport.tls import client_context
from dstack.values import ReportData
from kms.authorities import chain_endpoints, opened_authority
from kms.chain_settings import Chain
from kms.config import Settings
from kms.decision_log.store import open_store
from kms.evidence import EvidenceVerifier
from kms.keystore import ROOT_CA_CERT, RPC_CERT, TEMP_CA_CERT
from kms.roots import ROOT_CA_KEY, ROOT_K256_KEY
from kms.verifiers import make_image_cache, opened_verifier

ENDPOINT_SECONDS = 5.0
CLOCK_TOLERANCE = timedelta(minutes=2)
CERTIFICATE_WARNING = timedelta(days=30)
_SHOWN_TEXT = 200
_NO_REPORT_DATA = ReportData(bytes(ReportData.SIZE))


class Level(Enum):
    """How a finding stands."""

    OK = "ok"
    WARNING = "warning"
    WRONG = "wrong"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was looked at, what was seen, and what to do; no fix where nothing is to be done."""

    name: str
    level: Level
    said: str
    fix: str = ""


Findings = Iterator[Finding]


def examine(settings: Settings) -> Findings:
    """Look at everything that a KMS with these settings needs, cheapest first."""
    yield from (Finding("settings", Level.WARNING, notice, "docs/settings-kms.md") for notice in settings.notices())
    yield from _keys(settings.core.cert_dir)
    yield from _service(settings)
    yield from _database(settings)
    if settings.core.auth_api.type == "chain" and settings.core.auth_api.chain is not None:
        yield from _chain(settings.core.auth_api.chain)
    else:
        yield from _webhook(settings)
    yield from _machine(settings)


def exit_code(levels: set[Level]) -> int:
    """1 if something is wrong, else 3 if something could not be asked, else 0."""
    if Level.WRONG in levels:
        return 1
    return UnavailableError.exit_code if Level.UNKNOWN in levels else 0


def _keys(folder: Path) -> Findings:
    try:
        mode = stat.S_IMODE(folder.stat().st_mode)
        names = {path.name for path in folder.iterdir()}
    except FileNotFoundError:
        said = f"{folder} is not there: the KMS was not started yet, or the storage of its keys is not mounted"
        yield Finding("keys", Level.WARNING, said, "start the KMS: it makes the folder, for its owner alone")
        return
    except OSError as exc:
        fix = f"mkdir -m 700 {folder}, on storage that this machine alone can read"
        yield Finding("keys", Level.WRONG, f"{folder}: {exc.strerror}", fix)
        return
    if mode & 0o077:
        yield Finding("permissions", Level.WRONG, f"{folder} has mode {mode:o}, want 700", f"chmod 700 {folder}")
    open_files = [path for path in folder.iterdir() if path.suffix == ".key" and path.stat().st_mode & 0o077]
    for path in sorted(open_files):
        said = f"{path} has mode {stat.S_IMODE(path.stat().st_mode):o}, want 600"
        yield Finding("permissions", Level.WRONG, said, f"chmod 600 {path}; others on this machine may know it")
    if not mode & 0o077 and not open_files:
        yield Finding("permissions", Level.OK, f"{folder}: only its owner can read it")
    if not {ROOT_CA_KEY, ROOT_K256_KEY} & names:
        yield Finding(
            "keys", Level.WARNING, "no root keys yet", "start the KMS, then Onboard.Bootstrap or Onboard.Onboard"
        )
        return
    yield from (_certificate(folder / name) for name in (ROOT_CA_CERT, TEMP_CA_CERT, RPC_CERT))


def _certificate(path: Path) -> Finding:
    name = f"certificate {path.name}"
    try:
        ends = load_certificate(path.read_text()).not_valid_after_utc
    except (OSError, UnicodeDecodeError, DstackError) as exc:
        why = getattr(exc, "strerror", None) or str(exc)
        return Finding(name, Level.WRONG, f"{path}: {why}", "put the whole directory back from its backup")
    left = ends - datetime.now(UTC)
    if left < CERTIFICATE_WARNING:
        level = Level.WRONG if left < timedelta() else Level.WARNING
        return Finding(name, level, f"ends {ends:%Y-%m-%d}", "restart the KMS: it renews its certificates at the start")
    return Finding(name, Level.OK, f"good until {ends:%Y-%m-%d}")


def _service(settings: Settings) -> Findings:
    """Whether the KMS with these keys runs, and whether it got an answer of the chain since its start."""
    address, port = settings.rpc.address, settings.rpc.port
    if port == 0:
        return  # Any free one, and nobody here knows which.
    try:
        tls = client_context(ca_pem=(settings.core.cert_dir / ROOT_CA_CERT).read_text())
    except (OSError, UnicodeDecodeError, DstackError):
        return  # The findings about keys have said so.
    tls.check_hostname = False
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # noqa: S104 - where it listens
    url = f"https://{f'[{reached}]' if ':' in reached else reached}:{port}"
    try:
        answer = httpx.get(f"{url}/health", verify=tls, timeout=ENDPOINT_SECONDS, trust_env=False)
    except httpx.HTTPError:
        yield Finding("service", Level.WARNING, f"no KMS with these keys answers at {url}", "start the KMS")
        return
    if answer.status_code == OK:
        yield Finding("service", Level.OK, f"answers at {url}")
    else:
        fix = "see the chain's findings; the KMS goes on by itself when the chain answers"
        yield Finding("service", Level.UNKNOWN, f"{url}: {answer.text[:_SHOWN_TEXT]}", fix)


def _database(settings: Settings) -> Findings:
    url = settings.core.database_url
    path = Path(url.removeprefix("sqlite:///")) if url.startswith("sqlite:///") else None
    if path is not None and not path.exists():
        if path.parent.is_dir():
            yield Finding("database", Level.OK, f"{path} will be made at the first start")
        return
    try:
        with closing(open_store(url, read_only=True)) as store:
            yield Finding("database", Level.OK, f"log of decisions with {store.head().seq} entries")
    except DecisionLogUnavailableError as exc:
        yield Finding(
            "database", Level.UNKNOWN, str(exc), "core.decisions.database_url: is it there, and may this user use it?"
        )
    except DstackError as exc:
        yield Finding("database", Level.WRONG, str(exc), "core.decisions.database_url")


def _chain(chain: Chain) -> Findings:
    for number, url in enumerate(chain.endpoints, start=1):
        with closing(RpcEndpoint(url, seconds=ENDPOINT_SECONDS)) as endpoint:
            yield from _endpoint(endpoint, chain, f"chain endpoint {number}")
    with closing(chain_endpoints(chain)) as endpoints:
        try:
            block = KmsAuthReader(endpoints, chain.kms_contract).check(chain_id=chain.chain_id)
        except UnavailableError as exc:
            yield Finding(
                "chain", Level.UNKNOWN, str(exc), "core.auth_api.chain.rpc_urls: more than half must answer alike"
            )
        except DstackError as exc:
            yield Finding("contract", Level.WRONG, str(exc), "core.auth_api.chain.kms_contract and chain_id")
        else:
            yield Finding(
                "contract", Level.OK, f"{chain.kms_contract} is a KmsAuth at {chain.block_tag} block {block.number}"
            )


def _endpoint(endpoint: RpcEndpoint, chain: Chain, name: str) -> Findings:
    try:
        began = time.monotonic()
        answers = endpoint.batch([Request("eth_chainId"), block_request("latest"), block_request(chain.block_tag)])
        took = time.monotonic() - began
        chain_id = number_of(answers[0], "chain id")
        newest, settled = (block_of(answer, wanted="such") for answer in answers[1:])
    except EndpointError as exc:
        fix = "is it there, does it take batches, and is the key in its URL right?"
        yield Finding(name, Level.UNKNOWN, f"{endpoint.name}: {exc.fault}: {exc}", fix)
        return
    if chain.chain_id is not None and chain_id != chain.chain_id:
        yield Finding(
            name, Level.WRONG, f"{endpoint.name}: is on chain {chain_id}, want {chain.chain_id}", "another endpoint"
        )
        return
    said = f"{endpoint.name}: chain {chain_id}, {chain.block_tag} block {settled.number}, {took * 1000:.0f} ms"
    yield Finding(name, Level.OK, said)
    if not chain.is_development:
        yield _clock(datetime.fromtimestamp(newest.timestamp, UTC), datetime.now(UTC), endpoint.name)


def _clock(newest: datetime, now: datetime, where: str) -> Finding:
    """Block times are within seconds of everybody's clock, on a chain that is alive."""
    age = now - newest
    if age < -CLOCK_TOLERANCE:
        return Finding(
            "clock",
            Level.WRONG,
            f"this clock is {-age} behind the newest block of {where}",
            "set the clock (chrony, NTS)",
        )
    if age > CLOCK_TOLERANCE:
        said = f"the newest block of {where} is {age} old: this clock is ahead, or the endpoint is behind"
        return Finding("clock", Level.WARNING, said, "compare with another endpoint; set the clock (chrony, NTS)")
    return Finding("clock", Level.OK, f"within {CLOCK_TOLERANCE} of the newest block of {where}")


def _webhook(settings: Settings) -> Findings:
    try:
        with opened_authority(settings.core.auth_api) as authority:
            authority.check()
    except UnavailableError as exc:
        yield Finding(
            "auth server", Level.UNKNOWN, str(exc), "core.auth_api.webhook.url: does the auth server run there?"
        )
    except DstackError as exc:
        yield Finding("auth server", Level.WRONG, str(exc), "core.auth_api.webhook.url")
    else:
        yield Finding("auth server", Level.OK, "answers")


def _machine(settings: Settings) -> Findings:
    """Agent, collateral, own evidence, own permission: each only where the one before holds."""
    core = settings.core
    evidence: Evidence | None = None
    with ExitStack() as stack:
        try:
            verifier = stack.enter_context(opened_verifier(core, make_image_cache(core.image)))
            evidence = AgentClient(core.agent_socket).evidence(_NO_REPORT_DATA)
        except UnavailableError as exc:
            fix = f"is {core.agent_socket} mounted into this container?"
            yield Finding("guest agent", Level.UNKNOWN, str(exc), fix)
        except DstackError as exc:
            yield Finding("guest agent", Level.WRONG, str(exc), "core.attestation")
        if evidence is None:
            return
        yield Finding("guest agent", Level.OK, f"{core.agent_socket}: gives quotes")
        found = list(_collateral(verifier, evidence))
        yield from found
        if found[-1].level is Level.OK:
            yield from _own_evidence(settings, verifier, evidence)


def _collateral(verifier: EvidenceVerifier, evidence: Evidence) -> Findings:
    try:
        verifier.collateral.collateral_for(parse_quote(evidence.quote))
    except DstackError as exc:
        level = Level.UNKNOWN if isinstance(exc, UnavailableError) else Level.WRONG
        yield Finding("collateral", level, str(exc), "core.attestation.urls: a PCCS that answers, or fresh files")
    else:
        yield Finding("collateral", Level.OK, "there is some for this platform")


def _own_evidence(settings: Settings, verifier: EvidenceVerifier, evidence: Evidence) -> Findings:
    try:
        own = verifier.appraise(evidence, bound_to=_NO_REPORT_DATA)
    except ImageUnavailableError as exc:
        yield Finding("own evidence", Level.UNKNOWN, str(exc), "core.image: acpi_tables and download_url")
        return
    except DstackError as exc:
        yield Finding("own evidence", Level.WRONG, str(exc), "docs/verification-steps.md has the step by its number")
        return
    said = f"mr_aggregated {own.mr_aggregated.hex()}, device {own.device_id.hex()}, OS image {own.os_image_hash.hex()}"
    yield Finding("own evidence", Level.OK, said)
    yield _permission(settings, own)


def _permission(settings: Settings, own: Appraisal) -> Finding:
    name, fix = "permission", "the owners allow the values of `own evidence`: dstack govern propose"
    try:
        with opened_authority(settings.core.auth_api) as authority:
            decision = authority.authorize_kms(boot_info(own))
    except DstackError as exc:
        return Finding(name, Level.UNKNOWN, str(exc), "see the chain's findings")
    if isinstance(decision, Denied):
        return Finding(
            name, Level.WRONG, f"this machine may not be a KMS: {decision.reason} ({decision.rule.name})", fix
        )
    return Finding(name, Level.OK, f"this machine may be a KMS (block {decision.block.number})")
