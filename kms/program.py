"""The program behind `python -m kms -c kms.toml`: the only place where real things are made and joined.

Standard output carries the decision log, one JSON object per line; everything else goes to standard error.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from dstack.errors import ConfigError, DstackError, KeystoreError
from dstack.transport.agent import AgentClient
from dstack.transport.hardening import forbid_dumps
from dstack.transport.listener import Listener
from dstack.transport.signals import exit_at_signal
from dstack.transport.tls import server_context
from dstack.transport.verification_pool import VerificationPool
from kms.admin import Credentials, LegacyCache, admin_app
from kms.app import kms_app, onboard_app
from kms.authorities import opened_authority
from kms.authorization import SelfAuthorization
from kms.config import Admin, Settings, load_settings
from kms.decision_log.store import open_store
from kms.decision_log.writer import DecisionLog
from kms.decisions import keep_with
from kms.evidence import EvidenceVerifier
from kms.generation import reissue_rpc_certificate, renew_authorities
from kms.image_cache import ImageCache
from kms.keystore import KeySet, Keystore, open_keystore
from kms.logs import configure_logging
from kms.metrics import Metrics
from kms.onboard import Onboarding
from kms.onboard_service import OnboardService
from kms.permission import PermissionWatch
from kms.rate import RateLimit
from kms.release import KeyRelease
from kms.service import KmsService
from kms.start_check import CheckedAuthority
from kms.verifiers import make_image_cache, opened_verifier

_FILE_LIMIT = 64 << 10
ADMIN_TOKEN_NAMES = ("DSTACK_KMS_ADMIN_TOKEN", "ADMIN_API_TOKEN")

_log = logging.getLogger("kms")


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that both phases of the service are made of."""

    settings: Settings
    keystore: Keystore
    quotes: AgentClient
    verifier: EvidenceVerifier
    chain: CheckedAuthority
    own: SelfAuthorization
    images: ImageCache

    @property
    def simulated(self) -> bool:
        """Whether a root of trust is configured that is not Intel's."""
        return any(root.simulated for root in self.verifier.roots.roots)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service; the exit code is that of the error which ended it."""
    parser = argparse.ArgumentParser(
        prog="kms", description="Key management service: releases keys as the chain permits."
    )
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        default=Path("/etc/kms/kms.toml"),
        help="settings (docs/settings-kms.md); default: /etc/kms/kms.toml",
    )
    arguments = parser.parse_args(argv)
    try:
        forbid_dumps()
        run(load_settings(arguments.config))
    except DstackError as exc:
        sys.stderr.write(f"kms: {exc}\n")
        return exc.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; first the onboarding, where there are no keys.

    Raises:
        DstackError: It cannot start.
    """
    configure_logging(settings.log_level)
    signal.signal(signal.SIGTERM, exit_at_signal)
    with ExitStack() as stack:
        keystore = stack.enter_context(open_keystore(settings.core.cert_dir))
        parts = _parts(settings, keystore, stack)
        parts.chain.check()
        _introduce(parts)
        if not keystore.exists():
            _onboard(parts)
        _serve(parts)


def _parts(settings: Settings, keystore: Keystore, stack: ExitStack) -> Parts:
    """What *stack* ends when it does."""
    core = settings.core
    quotes, images = AgentClient(core.agent_socket), make_image_cache(core.image)
    verifier = stack.enter_context(opened_verifier(core, images))
    chain = core.auth_api.chain
    opened = stack.enter_context(opened_authority(core.auth_api))
    authority = CheckedAuthority(opened, chain_id=chain.chain_id if chain else None)
    pool = stack.enter_context(VerificationPool(roots=verifier.roots, policy=verifier.policy))
    verifier = replace(verifier, pool=pool)
    own = SelfAuthorization(quotes, verifier, authority)
    return Parts(settings, keystore, quotes, verifier, authority, own, images)


def _introduce(parts: Parts) -> None:
    """Say which roots are trusted, and what the contracts must allow for this KMS."""
    for root in parts.verifier.roots.roots:
        if root.simulated:
            _log.warning("NOT PRODUCTION: quotes of the simulated root %s are trusted; no CPU is", root.fingerprint)
        else:
            _log.info("root of trust: Intel's, %s", root.fingerprint)
    for notice in parts.settings.notices():
        _log.warning("%s", notice)
    try:
        own = parts.own.appraisal()
    except DstackError as exc:
        _log.warning("this machine's own evidence does not hold now: %s", exc)
        return
    _log.info(
        "this KMS: mr_aggregated %s, device %s, OS image %s",
        own.mr_aggregated.hex(),
        own.device_id.hex(),
        own.os_image_hash.hex(),
    )


def _onboard(parts: Parts) -> None:
    """Return when there are keys."""
    settings = parts.settings.core.onboard
    onboarding = Onboarding(parts.keystore, parts.quotes, parts.verifier, parts.own, parts.chain)
    # The domain may stay in the file for the sake of the certificate: it alone makes no keys.
    if not settings.enabled:
        raise ConfigError(f"{parts.settings.core.cert_dir}: want keys, as core.onboard.enabled is false, got none")
    if settings.auto_bootstrap_domain:
        onboarding.bootstrap(settings.auto_bootstrap_domain, "start")
        return
    service = OnboardService(
        onboarding,
        parts.own,
        parts.settings,
        finish=lambda: listener.stop(),
        recent_facts=parts.chain.recent_facts,
    )
    watch = PermissionWatch(parts.own, parts.chain)
    app = onboard_app(service, watch, simulated=parts.simulated, is_ready=lambda: parts.chain.is_checked)
    listener = Listener(app, host=settings.address, port=settings.port)
    _log.info("no keys yet: waiting for Bootstrap at http://%s:%d", settings.address, listener.port)
    with parts.chain.awaited(listener.stop):
        listener.run()
    onboarding.require_keys()


def _serve(parts: Parts) -> None:
    keys = _keys_with_fresh_certificate(parts)
    with _kept_decisions(parts, keys):
        _answer(parts, keys)


@contextmanager
def _kept_decisions(parts: Parts, keys: KeySet) -> Iterator[None]:
    """Every decision goes into the database as long as this lasts."""
    core = parts.settings.core
    store = open_store(core.database_url)
    log = DecisionLog(
        store,
        keys.roots.decision_signer(),
        about=lambda: _who_decides(parts.chain),
        retention=core.decisions.retention,
    )
    try:
        keep_with(log)
        yield
    finally:
        keep_with(None)
        log.close()
        store.close()


def _who_decides(authority: CheckedAuthority) -> dict[str, object]:
    facts = authority.recent_facts()
    return {"chain_id": facts.chain_id, "kms_contract": facts.kms_contract} if facts else {}


def _answer(parts: Parts, keys: KeySet) -> None:
    metrics = Metrics()
    service = KmsService(
        keys=keys,
        release=KeyRelease(keys.roots, parts.own, parts.verifier, parts.chain),
        chain=parts.chain,
        bootstrap_info=parts.keystore.bootstrap_info(),
        simulated=parts.simulated,
        cache=_legacy_cache(parts),
    )
    rpc = parts.settings.rpc
    tls = server_context(keys.rpc, client_ca_pem=keys.temp_ca.certificate_pem)
    limits = parts.settings.core.limits
    limit = RateLimit(everybody=limits.requests_per_second, peer=limits.requests_per_second_of_peer)
    app = kms_app(
        service,
        metrics,
        show_metrics=parts.settings.core.metrics.enabled,
        limit=limit,
        is_ready=lambda: parts.chain.is_checked,
    )
    # What GetMeta tells of the contract is old only as long as nobody asks for it.
    with parts.own.watched(also=parts.chain.recent_facts), _admin(parts, metrics):
        listener = Listener(
            app,
            host=rpc.address,
            port=rpc.port,
            tls=tls,
            connections_of_peer=limits.connections_of_peer,
            handshake_seconds=limits.handshake.total_seconds(),
        )
        _log.info("serving https://%s:%d as %s", rpc.address, listener.port, keys.domain)
        with parts.chain.awaited(listener.stop):
            listener.run()


@contextmanager
def _admin(parts: Parts, metrics: Metrics) -> Iterator[None]:
    """The operator's service beside the other, if it is wanted."""
    settings = parts.settings.core.admin
    if not settings.enabled:
        yield
        return
    app = admin_app(parts.images, _credentials(settings), metrics.observe)
    with Listener(app, host=settings.address, port=settings.port).running() as listener:
        _log.info("operator's service at http://%s:%d", settings.address, listener.port)
        yield


def _credentials(settings: Admin) -> Credentials:
    token = settings.auth_token.get_secret_value() or next(filter(None, map(os.environ.get, ADMIN_TOKEN_NAMES)), "")
    return Credentials.of_token(token, "" if settings.htpasswd_file is None else _text(settings.htpasswd_file))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(_FILE_LIMIT).decode()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read: {getattr(exc, 'strerror', None) or 'not UTF-8'}") from exc


def _legacy_cache(parts: Parts) -> LegacyCache | None:
    """ClearImageCache on the KMS service itself, as it was up to 0.5.11; only where its token's hash is set."""
    digest = parts.settings.core.admin_token_hash
    return LegacyCache(parts.images, Credentials(bytes.fromhex(digest))) if digest else None


def _close_to_others(keystore: Keystore) -> None:
    """Whoever could open a key may know it; that is said, and what can be done about it now is done."""
    try:
        for name in keystore.close_to_others():
            _log.warning("%s could be opened by others on this machine until now", keystore.directory / name)
    except KeystoreError as exc:
        _log.warning("%s", exc)


def _keys_with_fresh_certificate(parts: Parts) -> KeySet:
    keys = parts.keystore.load()
    _close_to_others(parts.keystore)
    domain = parts.settings.core.onboard.auto_bootstrap_domain or keys.domain
    if not domain:
        raise ConfigError("want core.onboard.auto_bootstrap_domain or the file rpc-domain, got neither")
    at, core = parts.verifier.clock(), parts.settings.core
    renewed = renew_authorities(replace(keys, domain=domain), at=at)
    keys = reissue_rpc_certificate(renewed, parts.quotes, at=at, classic=core.attestation.classic_extensions)
    parts.keystore.replace_certificates(keys)
    return keys
