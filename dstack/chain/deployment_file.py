"""The file that says where the contracts are: what `dstack govern deploy` writes and every other command reads."""

from __future__ import annotations

import json

from dstack.chain.client import checked_address
from dstack.chain.deploy import Deployment
from dstack.errors import ConfigError
from dstack.measurement.strict_json import Members, parse_json

FORMAT = "dstack-deployment"
VERSION = 1
MAX_FILE = 16 * 1024
_MAX_U64 = 2**64 - 1
_MEMBERS = frozenset({"format", "version", "chain_id", "operator", "kms_auth", "app_implementation", "first_block"})


def serialise_deployment(deployment: Deployment, *, first_block: int) -> bytes:
    """Write a deployment file; proposals are looked for from *first_block* on."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "chain_id": deployment.chain_id,
        "operator": deployment.operator,
        "kms_auth": deployment.kms_auth,
        "app_implementation": deployment.app_implementation,
        "first_block": first_block,
    }
    return (json.dumps(content, indent=2) + "\n").encode()


def parse_deployment(raw: bytes) -> tuple[Deployment, int]:
    """Read a deployment file: where everything is, and the first block to look at.

    Raises:
        ConfigError: Another form or version, or an address with a wrong checksum.
    """
    members = Members.of(
        parse_json(raw, what="deployment file", limit=MAX_FILE, error=ConfigError),
        what="deployment file",
        error=ConfigError,
    )
    if members.text("format") != FORMAT or members.integer("version", maximum=_MAX_U64) != VERSION:
        raise ConfigError(f"deployment file: want format {FORMAT!r}, version {VERSION}")
    members.refuse_others(_MEMBERS)
    operator, kms_auth, app_implementation = (
        checked_address(members.text(name), what=f"deployment file: {name}")
        for name in ("operator", "kms_auth", "app_implementation")
    )
    deployment = Deployment(members.integer("chain_id", maximum=_MAX_U64), operator, kms_auth, app_implementation)
    return deployment, members.integer("first_block", 0, maximum=_MAX_U64)
