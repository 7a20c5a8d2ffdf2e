"""What a command line says about trust: which root, and at what time."""

from __future__ import annotations

from datetime import UTC, datetime

from dstack.attestation.certificates import der_of, parse_chain
from dstack.attestation.policy_document import parse_moment
from dstack.attestation.roots import INTEL_ROOTS, TrustedRoots, simulated_root
from dstack.cli.files import read_input
from dstack.errors import InputError

_ROOT_LIMIT = 64 * 1024


def trusted_roots(path: str | None) -> TrustedRoots:
    """Intel's root, or the one simulated root in the file *path*, DER or PEM, and no other.

    Raises:
        InputError: It cannot be read, or is not one certificate of a simulator's root.
    """
    if path is None:
        return INTEL_ROOTS
    content = read_input(path, limit=_ROOT_LIMIT)
    if not content.lstrip().startswith(b"-----BEGIN"):
        return TrustedRoots((simulated_root(content),))
    chain = parse_chain(content, what="root", error=InputError)
    if len(chain) != 1:
        raise InputError(f"root: want one certificate, got {len(chain)}")
    return TrustedRoots((simulated_root(der_of(chain[0])),))


def moment(text: str | None) -> datetime:
    """The time that `--at` names, or now.

    Raises:
        InputError: Not a time with a zone.
    """
    return datetime.now(UTC) if text is None else parse_moment(text, what="--at")
