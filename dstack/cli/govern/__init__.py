"""`dstack govern`: propose what may get keys, look at it before it is in force, sign it, and take it back."""

from __future__ import annotations

import click

from dstack.cli.lazy import LazyGroup

_COMMANDS = (
    "accept",
    "adopt",
    "app",
    "approve",
    "calendar",
    "cancel",
    "deny",
    "deploy",
    "execute",
    "freeze",
    "history",
    "powers",
    "propose",
    "review",
    "rollback",
    "sign",
    "status",
    "submit",
)
_EXAMPLES = """\b
Examples:
  dstack govern deploy --owner 0x5afe... --guardian 0x9a7d... --key-file payer.key --out deployment.json
  dstack govern propose --app 0xa9b0... --compose app-compose.json --uri ipfs://... --out proposal.json
  dstack govern sign proposal.json --key-file owner.json
  dstack govern submit proposal.json --key-file payer.key

Every command but `sign` reads the deployment file and asks a chain: --deployment and --rpc-url, or the environment
variables DSTACK_DEPLOYMENT and DSTACK_RPC_URL. docs/owners.md tells the story from deploy to executed upgrade."""


@click.group(
    name="govern", cls=LazyGroup, modules={name: f"dstack.cli.govern.{name}" for name in _COMMANDS}, epilog=_EXAMPLES
)
def command() -> None:
    """Decide what may get keys: propose, review, sign, execute, deny.

    Nothing becomes allowed sooner than 48 hours after everybody could read it. Denying takes effect at once.
    """
