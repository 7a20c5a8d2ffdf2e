"""The options that say what a VM is made of, as far as anything of it is measured."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from dstack.cli.files import read_input
from dstack.cli.subjects import held_vm_config
from dstack.errors import InputError
from dstack.measurement.result_json import MAX_RESULT
from dstack.measurement.vm_config import VmConfig, parse_vm_config
from dstack.values import OsImageHash

_CommandT = TypeVar("_CommandT", bound=Callable[..., Any])
_SIZE = re.compile(r"(\d{1,19})([KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_MAX_U64 = 2**64 - 1

_OPTIONS = (
    click.option("--vm-config", metavar="FILE", help="A VM config, a sys-config or a GetQuote answer that holds one."),
    click.option("--memory", metavar="SIZE", help="Such as 2G or 4096M."),
    click.option("--cpus", type=click.IntRange(1, 2**32 - 1), help="Virtual CPUs.  [default: 1]"),
    click.option("--qemu-version", metavar="X.Y.Z", help="Of the host; decides the page order of MRTD, and pic."),
    click.option("--page-order", type=click.Choice(["single", "two"]), help="Overrides what the version says."),
    click.option("--pic/--no-pic", default=None, help="Overrides what the version says."),
    click.option("--nics", type=click.IntRange(0, 2**32 - 1), help="Network cards.  [default: 1]"),
    click.option("--volumes", type=click.IntRange(0, 2**32 - 1), help="Verity volumes."),
    click.option("--gpus", type=click.IntRange(0, 2**32 - 1), help="Passed-through GPUs."),
    click.option("--hole64", metavar="SIZE", help="Size of the 64-bit PCI hole, if the host set one."),
    click.option("--hotplug-off", is_flag=True, help="The host switched PCI hotplug off."),
    click.option("--share-mode", type=click.Choice(["9p", "vvfat", "vhd"]), help="How files are shared."),
)
_NAMES = (
    *("vm_config", "memory", "cpus", "qemu_version", "page_order", "pic", "nics", "volumes", "gpus", "hole64"),
    *("hotplug_off", "share_mode"),
)


def shape_options(command: _CommandT) -> _CommandT:
    """Give a command these options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def take_shape(typed: dict[str, Any], *, claimed: str | None, image: OsImageHash | None) -> VmConfig:
    """Make the VM config, from a file or from options.

    Args:
        typed: All that a command got; the options of this module are taken out.
        claimed: A VM config that came with what is to be compared; used if nothing else says the shape.
        image: Of the image that is measured.

    Raises:
        InputError: Neither says the shape, both do, or something is malformed.
    """
    options = {name: typed.pop(name) for name in _NAMES}
    path = options.pop("vm_config")
    given = sorted(name for name, value in options.items() if value not in (None, False))
    if path is not None and given:
        raise InputError(f"--vm-config says the whole shape; want no --{given[0].replace('_', '-')} beside it")
    if path is not None:
        return parse_vm_config(held_vm_config(read_input(path, limit=MAX_RESULT), path))
    if options["memory"] is not None:
        return _typed_shape(options, image or OsImageHash(bytes(OsImageHash.SIZE)))
    if given:
        raise InputError("--memory: it is measured, and was not given")
    if claimed is not None:
        return parse_vm_config(claimed)
    raise InputError("want the VM's shape: --vm-config FILE, or --memory and what else differs from the defaults")


def _typed_shape(options: dict[str, Any], image: OsImageHash) -> VmConfig:
    order = options["page_order"]
    return VmConfig(
        os_image_hash=image,
        cpu_count=options["cpus"] or 1,
        memory_size=_size(options["memory"], "--memory"),
        qemu_version=options["qemu_version"],
        # The wire's name is the wrong way round: see VmConfig.
        qemu_single_pass_add_pages=None if order is None else order == "two",
        pic=options["pic"],
        num_nics=1 if options["nics"] is None else options["nics"],
        num_verity_volumes=options["volumes"] or 0,
        num_gpus=options["gpus"] or 0,
        pci_hole64_size=_size(options["hole64"] or "0", "--hole64"),
        hotplug_off=options["hotplug_off"],
        host_share_mode=options["share_mode"] or "9p",
    )


def _size(text: str, option: str) -> int:
    match = _SIZE.fullmatch(text)
    size = int(match[1]) * _UNITS[match[2].upper()] if match else -1
    if not 0 <= size <= _MAX_U64:
        raise InputError(f"{option}: want a size such as 2G or 4096M, got {text[:40]!r}")
    return size
