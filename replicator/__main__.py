"""`python -m replicator [-c FILE]` serves; `python -m replicator bootstrap [-c FILE]` makes the first secure file."""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
from datetime import UTC, datetime
from pathlib import Path

from dstack.chain.client import ChainClient
from dstack.chain.kms_auth import KmsAuthReader
from dstack.errors import DstackError, KeystoreError
from dstack.transport.agent import AgentClient
from dstack.transport.collateral import DirectoryCollateral
from dstack.transport.listener import Listener
from replicator.app import replicator_app
from replicator.config import ChainSettings, Settings, load_settings
from replicator.node import Replicator, Surroundings
from replicator.peers import EvidenceVerifier
from replicator.storage import ReceiptFolder, SecureFile

BOOTSTRAP_SIZE = 32

_log = logging.getLogger("replicator")


def main() -> int:
    """Do what the command line says; the exit code is that of the error."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # Every request to the guest agent would be a line.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = load_settings(arguments.config)
        if arguments.command == "bootstrap":
            bootstrap(settings)
        else:
            serve(settings)
    except DstackError as exc:
        _log.error("%s", exc)
        return exc.exit_code
    return 0


def bootstrap(settings: Settings) -> None:
    """Make the secure file of the very first node: random bytes.

    Raises:
        KeystoreError: There is one already, or it cannot be written.
    """
    secure_file = SecureFile(settings.secure_file)
    if secure_file.exists():
        raise KeystoreError(f"bootstrap: a secure file exists at {settings.secure_file}")
    secure_file.create(secrets.token_bytes(BOOTSTRAP_SIZE))
    _log.info("bootstrap: made %s", settings.secure_file)


def serve(settings: Settings) -> None:
    """Answer until SIGTERM.

    Raises:
        ConfigError: The address cannot be listened at, the receipts folder cannot be made, or the chain settings do
            not lead to a KmsAuth.
        ChainUnavailableError: The chain does not answer.
    """
    receipts = ReceiptFolder(settings.receipts_dir)
    receipts.prepare()
    around = Surroundings(
        quotes=AgentClient(settings.agent_socket),
        verifier=EvidenceVerifier(settings.roots, settings.policy, DirectoryCollateral(settings.collateral_dir)),
        connect=_connect,
        secure_file=SecureFile(settings.secure_file),
        receipts=receipts,
        clock=lambda: datetime.now(UTC),
        random=secrets.token_bytes,
    )
    node = Replicator(around, settings.chain)
    listener = Listener(replicator_app(node), host=settings.host, port=settings.port)
    _log.info("listening at %s:%d", settings.host, listener.port)
    listener.run()


def _connect(chain: ChainSettings) -> KmsAuthReader:
    """A reader of a chain that answers and a contract that is one: a wrong setting shows at once."""
    reader = KmsAuthReader(ChainClient(chain.rpc_url, block_tag=chain.block_tag), f"0x{chain.kms_auth.hex()}")
    reader.check(chain_id=chain.chain_id)
    return reader


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="replicator", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["serve", "bootstrap"], default="serve")
    parser.add_argument("-c", "--config", type=Path, default=Path("replicator.toml"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
