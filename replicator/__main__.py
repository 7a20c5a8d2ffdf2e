"""`python -m replicator [-c FILE]` serves; `python -m replicator bootstrap [-c FILE]` makes the first secure file."""

from __future__ import annotations

import argparse
import contextlib
import logging
import secrets
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

from dstack.errors import ConfigError, DstackError, HandoverRefusedError
from dstack.transport.collateral_store import opened_collateral
from dstack.transport.hardening import forbid_dumps
from dstack.transport.listener import Listener
from dstack.transport.signals import exit_at_signal
from replicator.acpi_tables import FROM_LOG, tables_from
from replicator.app import container_app, replicator_app
from replicator.bootstrap import make_genesis
from replicator.chain_law import ChainLaw
from replicator.config import Settings, load_settings
from replicator.custody import Genesis
from replicator.forgetting import forgetting
from replicator.guest_agents import find_agent
from replicator.node import Replicator, Surroundings
from replicator.peers import EvidenceVerifier
from replicator.receipts import ReceiptFolder
from replicator.storage import SecureFile

DEFAULT_CONFIG = Path("/etc/replicator.toml")
CONTAINER_SOCKET_MODE = 0o777

_log = logging.getLogger("replicator")


def main() -> int:
    """Do what the command line says; the exit code is that of the error."""
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.adopt and arguments.command != "bootstrap":
        parser.error("--adopt: want it with bootstrap")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Every request to the guest agent would be a line.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        forbid_dumps()
        settings = load_settings(arguments.config)
        if arguments.command == "bootstrap":
            bootstrap(settings, adopt=arguments.adopt)
        else:
            serve(settings)
    except DstackError as exc:
        _log.error("%s", exc)
        return exc.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def bootstrap(settings: Settings, *, adopt: bool) -> None:
    """Make the secure file of the very first node: random bytes, or what lies there.

    Raises:
        DstackError: As `make_genesis`; or the endpoints are left to `/configure`, which is for serving.
    """
    if not settings.chain.rpc_urls:
        raise ConfigError("bootstrap: want chain.rpc_urls in the settings")
    with contextlib.ExitStack() as stack:
        genesis = _make_genesis(make_node(settings, stack), adopt=adopt)
        sys.stdout.write(f"dstack govern propose {genesis_words(genesis)}\n")


def _make_genesis(node: Replicator, *, adopt: bool = False) -> Genesis:
    genesis = make_genesis(node.parts, node.law, adopt=adopt)
    _log.info("bootstrap: genesis %s of app %s", genesis.hash().hex(), genesis.app_id.hex())
    return genesis


def _bootstrap_as_requested(node: Replicator, request: Path | None) -> None:
    """Make the first secure file where the host asks for it: that changes nothing that is measured.

    Whoever can ask decides no more than that this node makes one: where the chain records a genesis, none is made.

    Raises:
        DstackError: As `make_genesis`, but for a genesis that is recorded.
    """
    if request is None or not request.exists() or node.parts.secure_file.exists():
        return
    try:
        genesis = _make_genesis(node)
        _log.info("bootstrap: for the owners: dstack govern propose %s", genesis_words(genesis))
    except HandoverRefusedError as exc:
        _log.warning("%s; %s asks in vain", exc, request)


def genesis_words(genesis: Genesis) -> str:
    """What the owners propose, so that the chain records *genesis*."""
    return f"Genesis:0x{genesis.app_id.hex()}={genesis.fingerprint.hex()},{genesis.hash().hex()}"


def make_node(settings: Settings, stack: contextlib.ExitStack) -> Replicator:
    """Join the real things, which *stack* closes at its end, and finish or undo what a crash interrupted.

    Raises:
        ConfigError: The receipts folder cannot be made, or the chain settings do not lead to the contracts.
        KeystoreError: Another process has the secure file, or what a crash left cannot be repaired.
        UnavailableError: There is no guest agent, or the chain does not answer.
    """
    if settings.acpi_tables == FROM_LOG:
        _log.warning("ACPI tables are not verified: machines get the secure file on what only their own log says")
    receipts = ReceiptFolder(settings.receipts_dir, settings.max_receipts)
    receipts.prepare()
    secure_file = SecureFile(settings.secure_file)
    secure_file.hold()
    secure_file.recover(receipts)
    collateral = stack.enter_context(
        opened_collateral(settings.collateral_dir, urls=settings.collateral_urls, roots=settings.roots, clock=_now)
    )
    around = Surroundings(
        quotes=find_agent(settings.agent_socket),
        verifier=EvidenceVerifier(settings.roots, settings.policy, collateral, tables_from(settings.acpi_tables)),
        connect=ChainLaw,
        secure_file=secure_file,
        receipts=receipts,
        clock=_now,
        random=secrets.token_bytes,
    )
    return Replicator(around, settings.chain, containers=settings.containers, old_forms=settings.old_forms)


def _now() -> datetime:
    return datetime.now(UTC)


def serve(settings: Settings) -> None:
    """Answer until SIGTERM, and close what was opened. For the main thread.

    Raises:
        ConfigError: As `make_node`; or an address cannot be listened at.
        DstackError: As `make_node`.
    """
    signal.signal(signal.SIGTERM, exit_at_signal)
    with contextlib.ExitStack() as stack:
        node = make_node(settings, stack)
        _bootstrap_as_requested(node, settings.bootstrap_request)
        stack.enter_context(forgetting(node))
        listener = Listener(
            replicator_app(node),
            host=settings.host,
            port=settings.port,
            connections_of_peer=settings.connections_of_peer,
        )
        for container in node.containers:
            if container.socket is not None:
                own = Listener(
                    container_app(node, container), unix_socket=container.socket, unix_mode=CONTAINER_SOCKET_MODE
                )
                stack.enter_context(own.running())
        _log.info("listening at %s:%d", settings.host, listener.port)
        # An agent may take its time; requests need not wait for that.
        threading.Thread(target=_introduce, args=(node,), daemon=True).start()
        listener.run()


def _introduce(node: Replicator) -> None:
    """Log what this machine is, or what is missing so that nothing can be handed over."""
    try:
        boot = node.identity.boot()
    except DstackError as exc:
        _log.warning("no handover before this is mended: %s", exc)
        return
    what = boot.app_id.hex(), boot.compose_hash.hex(), boot.os_image_hash.hex(), boot.device_id.hex()
    _log.info("this node: app %s, compose hash %s, OS image %s, device %s", *what)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m replicator", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["serve", "bootstrap"], default="serve", help="default: serve")
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        default=DEFAULT_CONFIG,
        help=f"settings (docs/settings-replicator.md); default: {DEFAULT_CONFIG}",
    )
    parser.add_argument("--adopt", action="store_true", help="bootstrap: take the secure file that lies there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
