"""The kinds of the folder `vmm` that a measurement depends on: command lines, addresses, what a machine is bound to."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

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


KINDS: Mapping[str, Sections] = {
    "vmm/qemu_argv": {WHOLE_FILE: (Computation(("input",), _argv, optional=(Part("argv", _not_derived),)),)},
    "vmm/mac": {"cases": (Computation(("vm_id", "index", "prefix"), _mac),)},
    "vmm/mrconfigid": {
        "cases": (
            Computation(
                ("version", "compose_hash"), _bound, optional=("app_id", "key_provider", "key_provider_id_hex")
            ),
        ),
    },
}
