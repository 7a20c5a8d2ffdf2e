"""The kinds of the folder `vmm` that other parts than a VMM compute: command lines, hashes, encrypted environments."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from dstack.keys import sealing, signature_chain
from dstack.keys.derivation import env_public_key
from dstack.keys.scalars import k256_public_key
from dstack.measurement.compose import compose_hash, default_app_id
from dstack.measurement.image import os_image_hash, parse_checksum_file, require_listed
from dstack.measurement.mr_config_id import mr_config_id_v1, mr_config_id_v2
from dstack.measurement.vm_config import VmConfig
from dstack.values import AppId, ComposeHash, OsImageHash, Register
from dstack.vmm.qemu import MIB, Placement, PortForward, mac_address, qemu_argv
from vectors.cases import WHOLE_FILE
from vectors.compare import Computation, Computed, Part, Sections, UnsupportedError

_bytes = bytes.fromhex


def _argv(given: Mapping[str, Any], from_argv: tuple[str, str]) -> Computed:
    """The whole command; what an app-compose.json and an image would say is taken from it."""
    if given.get("config") != "vmm.toml defaults":
        raise UnsupportedError("a host with settings of its own")
    bound_to, cmdline = from_argv
    image = given["image_dir"]
    placement = Placement(
        vm_id=given["vm_id"],
        workdir=given["workdir"],
        firmware=f"{image}/ovmf.fd",
        kernel=f"{image}/bzImage",
        initrd=f"{image}/initramfs.cpio.gz",
        rootfs=f"{image}/rootfs.img.verity",
        cmdline=cmdline,
        cid=given["cid"],
        ports=tuple(PortForward(**port) for port in given["ports"]),
        mr_config_id=Register(base64.b64decode(bound_to)) if bound_to else None,
    )
    config = VmConfig(
        os_image_hash=OsImageHash(bytes(32)), cpu_count=given["vcpu"], memory_size=given["memory_mb"] * MIB
    )
    return {"argv": qemu_argv(config, placement)}


def _not_derived(argv: list[str]) -> tuple[str, str]:
    machine = json.loads(argv[argv.index("-object") + 1])
    return machine.get("mrconfigid", ""), argv[argv.index("-append") + 1]


def _mac(vm_id: str, index: int, prefix: str) -> Computed:
    return {"mac": mac_address(vm_id, index, _bytes(prefix.replace(":", "")))}


def _bound(
    version: int, compose_hash: str, app_id: str | None, provider: str | None, provider_id: str | None
) -> Computed:
    compose = ComposeHash(_bytes(compose_hash))
    if version == 1:
        register = mr_config_id_v1(compose)
    elif version == 2 and app_id and provider:
        register = mr_config_id_v2(compose, AppId(_bytes(app_id)), provider, _bytes(provider_id or ""))
    else:
        raise UnsupportedError(f"version {version}")
    return {"mrconfigid_hex": register.hex(), "qemu_base64": base64.b64encode(register).decode()}


def _composed(text: str) -> Computed:
    digest = compose_hash(text.encode())
    return {"compose_hash": digest.hex(), "app_id": default_app_id(digest).hex()}


def _listed(text: str) -> Computed:
    return {"order": list(parse_checksum_file(text.encode())), "digest": os_image_hash(text.encode()).hex()}


def _files(text: str, files: Mapping[str, str]) -> Computed:
    """Each file that is listed is the one beside the list."""
    listed = parse_checksum_file(text.encode())
    for name in listed:
        require_listed(name, sha256(_bytes(files[name])).digest(), listed)
    return {"sha256sum_txt": text}


def _env_key(private_key: str) -> Computed:
    return {"app_public_hex": env_public_key(_bytes(private_key)).hex()}


def _encrypted(public_key: str, ephemeral: str, iv: str, plaintext: str) -> Computed:
    secrets = iter((_bytes(ephemeral), _bytes(iv)))
    blob = sealing.encrypt_env(_bytes(public_key), plaintext.encode(), random=lambda _: next(secrets))
    return {"encrypted_env_hex": blob.hex()}


def _decrypted(private_key: str, blob: str) -> Computed:
    return {"plaintext_utf8": sealing.decrypt_env(_bytes(private_key), _bytes(blob)).decode()}


def _signed(public_key: str, app_id: str, timestamp: int, signer: str) -> Computed:
    app, key, root = AppId(_bytes(app_id)), _bytes(public_key), _bytes(signer)
    computed = {"signing.signer_compressed": f"0x{k256_public_key(root).hex()}"}
    for digest, signature, at in (("digest_legacy", "signature", None), ("digest_v1", "signature_v1", timestamp)):
        message = signature_chain.env_public_key_message(app, key, at)
        computed[f"signing.{digest}"] = signature_chain.keccak256(message).hex()
        computed[f"signing.{signature}"] = signature_chain.sign_env_public_key(root, app, key, at).hex()
    return computed


# A file about one case is that case; one about more has them in a list.
_COMMAND = (Computation(("input",), _argv, optional=(Part("argv", _not_derived),)),)
_ENVIRONMENT = (
    Computation(("app_private_hex",), _env_key),
    Computation(("app_public_hex", "ephemeral_private_hex", "iv_hex", "plaintext_utf8"), _encrypted),
    Computation(("app_private_hex", "encrypted_env_hex"), _decrypted),
    Computation(("app_public_hex", "signing.app_id", "signing.timestamp", "signing.signer_private_hex"), _signed),
)

KINDS: Mapping[str, Sections] = {
    "vmm/qemu_argv": {WHOLE_FILE: _COMMAND, "cases": _COMMAND},
    "vmm/compose_hash": {"cases": (Computation(("text",), _composed),)},
    "vmm/image_digest": {
        "cases": (Computation(("sha256sum_txt",), _listed), Computation(("sha256sum_txt", "/files_hex"), _files)),
    },
    "vmm/env_encrypt": {WHOLE_FILE: _ENVIRONMENT, "cases": _ENVIRONMENT},
    "vmm/mac": {"cases": (Computation(("vm_id", "index", "prefix"), _mac),)},
    "vmm/mrconfigid": {
        "cases": (
            Computation(
                ("version", "compose_hash"), _bound, optional=("app_id", "key_provider", "key_provider_id_hex")
            ),
        ),
    },
}
