"""Whether the chain would take a signed transaction of a Safe: asked before anything is sent."""

from __future__ import annotations

from web3 import Web3

from dstack.chain.safe import CODES
from dstack.chain.safe_account import approval_signature, approved_on_chain, execute_transaction_call, read_safe
from dstack.chain.signing_file import SigningFile
from dstack.chain.tx import Call, simulate, translated
from dstack.errors import RefusedError


def prepare_submission(w3: Web3, file: SigningFile) -> Call:
    """The call that makes *file*'s transaction, complete with what owners approved on the chain.

    Raises:
        RefusedError: Another chain, no Safe there, not the Safe's turn, a signer who is no owner now, too few
            signatures, or the contract called would refuse.
        ChainUnavailableError: The endpoint does not answer.
    """
    transaction = file.transaction
    with translated():
        chain_id = w3.eth.chain_id
    if chain_id != transaction.chain_id:
        raise RefusedError(
            f"chain id: the signing file is for chain {transaction.chain_id}, the endpoint is {chain_id}"
        )
    safe = read_safe(w3, transaction.safe)
    if safe is None:
        raise RefusedError(f"Safe: there is none at {transaction.safe} on chain {chain_id}")
    if transaction.nonce < safe.nonce:
        raise RefusedError(
            f"Safe: transaction {transaction.nonce} was made or replaced already; its next is {safe.nonce}"
        )
    if transaction.nonce > safe.nonce:
        raise RefusedError(f"Safe: transaction {transaction.nonce} must wait; its next is {safe.nonce}")
    for signature in file.signatures:
        if signature.owner not in safe.owners:
            raise RefusedError(f"Safe: {signature.owner} signed, and is not an owner of {safe.address} now")
    signers = {signature.owner for signature in file.signatures}
    approvals = [owner for owner in approved_on_chain(w3, safe, transaction.digest()) if owner not in signers]
    count = len(signers) + len(approvals)
    if count < safe.threshold:
        raise RefusedError(f"Safe: want {safe.threshold} signatures of its {len(safe.owners)} owners, got {count}")
    simulate(w3, safe.address, Call(transaction.to, transaction.data))
    call = execute_transaction_call(transaction, [*file.signatures, *map(approval_signature, approvals)])
    try:
        simulate(w3, safe.address, call)
    except RefusedError as exc:
        raise RefusedError(f"Safe: {CODES.get(str(exc), str(exc))}") from exc
    return call
