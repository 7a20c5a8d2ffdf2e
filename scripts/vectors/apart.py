"""Members of golden data that are compared with nothing, and why: explanations for readers, and what is not ours."""

from __future__ import annotations

from collections.abc import Mapping

_FOR_READERS = "says something to readers"
_STEP = "a step inside of what is compared"
_OTHER_CONTRACTS = "of other contracts than ours"

APART: Mapping[str, Mapping[str, str]] = {
    "guest/report_data": {
        "pubk": "of the original replicatoor, whose requests ours replace",
        "report_data_expected_by_onboard": "of the original replicatoor, whose requests ours replace",
    },
    "guest/sdk_compose_hash": {"made_with": _FOR_READERS},
    "guest/sdk_requests": {"user_agent": "decides nothing"},
    "kms/attestation": {"quote_is": _FOR_READERS},
    "kms/contracts": {
        "storage_layout": f"{_OTHER_CONTRACTS}: what of storage must stay is compared by tests/contracts",
        "upgrade_operator": f"{_OTHER_CONTRACTS}: the original operator's registers, which configurations replace",
    },
    "kms/csr": {"attestation": _FOR_READERS, "signature_scheme": _FOR_READERS, "why": _FOR_READERS},
    "kms/env_encrypt": {"app_id": "not part of the encryption", "shared_secret": _STEP},
    "measurement/synthetic": {"initrd_size": "went into the document, which is given"},
    "measurement/debian-kernel-authenticode": {"proof": _FOR_READERS},
    "measurement/debian-ovmf": {"expect": _FOR_READERS},
    "vmm/compose_hash": {"about": _FOR_READERS, "how": _FOR_READERS},
    "vmm/env_encrypt": {"about": _FOR_READERS},
    "vmm/image_digest": {"about": _FOR_READERS, "format": _FOR_READERS},
    "vmm/mac": {"about": _FOR_READERS},
    "vmm/mrconfigid": {"about": _FOR_READERS, "key_provider_byte": _STEP},
    "vmm/qemu_argv": {"about": _FOR_READERS},
}


def reason(kind: str, member: str) -> str | None:
    """Why a member is compared with nothing; None where that is a gap."""
    return next(
        (why for name, why in APART.get(kind, {}).items() if member == name or member.startswith(f"{name}.")), None
    )
