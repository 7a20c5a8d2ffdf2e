"""`dstack govern`: propose what may get keys, look at it before it is in force, sign it, and take it back."""

from __future__ import annotations

import click

from dstack.cli.lazy import LazyGroup

_SUMMARIES = {
    "accept": "become owner or guardian, as an executed proposal said",
    "adopt": "take over a contract that was offered to the operator",
    "anchor": "put the digest of a handover's receipt on record",
    "app": "have KmsAuth make and register an app",
    "approve": "agree, as owner of a Safe that owns the Safe",
    "calendar": "what becomes possible or ends by itself, soonest first",
    "cancel": "stop a proposal for good",
    "deny": "take grants back at once",
    "deploy": "put the contracts on a chain",
    "execute": "put a proposal in force, 48 hours or more after it",
    "freeze": "give an app no keys for 7 days",
    "genesis": "where the custody of an app's secure file begins",
    "history": "every event of the governed contracts",
    "powers": "who can do what, and how soon",
    "propose": "announce what may get keys",
    "review": "recompute a proposal from its content and your files",
    "rollback": "agree to the rollback staged with a proposal, or run it",
    "sign": "put a signature into a signing file, offline",
    "status": "who governs, what is allowed, what waits",
    "submit": "send what enough owners have signed",
}
_EXAMPLES = """\b
Examples:
  dstack govern deploy --owner 0x5afe... --guardian 0x9a7d... --key-file payer.key --out deployment.json
  dstack govern propose --app 0xa9b0... --compose app-compose.json --uri ipfs://... --out proposal.json
  dstack govern sign proposal.json --key-file owner.json
  dstack govern submit proposal.json --key-file payer.key

Every command but `sign` reads the deployment file and asks a chain: --deployment and --rpc-url, or the environment
variables DSTACK_DEPLOYMENT and DSTACK_RPC_URL. docs/owners.md tells the story from deploy to executed upgrade."""


@click.group(
    name="govern",
    cls=LazyGroup,
    modules={name: (f"dstack.cli.govern.{name}", summary) for name, summary in _SUMMARIES.items()},
    epilog=_EXAMPLES,
)
def command() -> None:
    """Decide what may get keys: propose, review, sign, execute, deny.

    Nothing becomes allowed sooner than 48 hours after everybody could read it. Denying takes effect at once.
    """
