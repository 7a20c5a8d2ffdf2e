"""Content as the chain would take it now."""

from __future__ import annotations

from collections.abc import Sequence

from eth_typing import ChecksumAddress
from web3 import Web3

from dstack.chain.bindings import contract_at
from dstack.chain.operator import Action, Content
from dstack.chain.tx import translated
from dstack.values import Digest32


def current_content(
    w3: Web3, operator: ChecksumAddress, actions: Sequence[Action], uri: str, *, rollback: Sequence[Action] = ()
) -> Content:
    """Content that names the code which every account in it has on the chain now.

    The endpoint is believed about that code: a signer compares the hashes with those of code they know.

    Raises:
        RefusedError: The contract refuses the actions.
        ChainUnavailableError: The endpoint does not answer.
    """
    parts = [[action.abi_tuple() for action in part] for part in (actions, rollback)]
    with translated():
        found = contract_at(w3, "UpgradeOperator", operator).functions.codeHashesOf(*parts).call()
    return Content(tuple(actions), tuple(rollback), tuple(map(Digest32, found)), uri)
