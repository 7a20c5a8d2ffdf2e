"""What KmsAuth shall publish about the KMS, as a JSON file: one object with four members in hexadecimal."""

from __future__ import annotations

from dstack.chain.action_data import KmsInfo
from dstack.errors import InputError
from dstack.measurement.strict_json import Members, parse_json

MAX_FILE = 64 * 1024
# Storing costs 20,000 gas for 32 bytes: what is beyond this does not fit into a block.
MAX_BYTES = 24 * 1024
_MEMBERS = ("k256_pubkey", "ca_pubkey", "quote", "eventlog")


def parse_kms_info_file(raw: bytes) -> KmsInfo:
    """Read `k256_pubkey`, `ca_pubkey`, `quote` and `eventlog`; the last two may be empty.

    Raises:
        InputError: It is not of this form, a key is missing, or it is too long for a chain.
    """
    document = parse_json(raw, what="KMS info file", limit=MAX_FILE, error=InputError)
    members = Members.of(document, what="KMS info file", error=InputError)
    members.refuse_others(frozenset(_MEMBERS))
    info = KmsInfo(*(members.hexadecimal(name) for name in _MEMBERS))
    if not info.k256_pubkey or not info.ca_pubkey:
        raise InputError("KMS info file: want both public keys, got an empty one")
    size = len(info.encode())
    if size > MAX_BYTES:
        raise InputError(f"KMS info file: want at most {MAX_BYTES} bytes of data, got {size}")
    return info
