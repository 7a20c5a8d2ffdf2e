"""What a VM is made of, as its host states it (guest.md 2, measurement.md 7).

Nothing here is believed: registers are computed from it and compared with a quote.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64decode, b64encode
from dataclasses import dataclass, fields
from functools import lru_cache

from dstack.errors import MeasurementMalformedError
from dstack.measurement.strict_json import Members, parse_json
from dstack.values import OsImageHash

MAX_VM_CONFIG = 256 * 1024
SPEC_VERSION = 1
DEFAULT_QEMU_VERSION = "9.1.0"
_KNOWN_TEXTS = 32

_QEMU_VERSION = re.compile(r"(0|[1-9]\d{0,3})\.(0|[1-9]\d{0,3})\.(0|[1-9]\d{0,3})", re.ASCII)
_MAX_U32 = 2**32 - 1
_MAX_U64 = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class VmConfig:
    """One description of a VM.

    Attributes:
        os_image_hash: SHA-256 of the image's sha256sum.txt.
        cpu_count: Virtual CPUs.
        memory_size: Bytes.
        qemu_version: MAJOR.MINOR.PATCH; None is treated as 9.1.0.
        qemu_single_pass_add_pages: Upstream's word on the wire, where true means TWO passes; read `two_pass` instead.
        pic: Overrides the interrupt controller that follows from the QEMU version.
        ovmf_variant: Which order of RTMR0 events the firmware has.
        tdx_attestation_variant: `legacy` or `lite`; it alone selects how reference values are found.
        checksum_file: The image's sha256sum.txt, in lite mode.
        measurement: The image's measurement document, in lite mode.
        image: The image's name; says nothing.
    """

    os_image_hash: OsImageHash
    cpu_count: int
    memory_size: int
    qemu_version: str | None = None
    qemu_single_pass_add_pages: bool | None = None
    pic: bool | None = None
    ovmf_variant: str | None = None
    tdx_attestation_variant: str = "legacy"
    checksum_file: bytes | None = None
    measurement: bytes | None = None
    image: str | None = None
    host_share_mode: str = "9p"
    pci_hole64_size: int = 0
    hugepages: bool = False
    hotplug_off: bool = False
    num_gpus: int = 0
    num_nvswitches: int = 0
    num_nics: int = 1
    num_verity_volumes: int = 0
    swtpm: bool = False

    def __post_init__(self) -> None:
        if self.tdx_attestation_variant not in ("legacy", "lite"):
            raise _malformed(f"tdx_attestation_variant: want legacy or lite, got {self.tdx_attestation_variant[:80]!r}")
        if self.qemu_version is not None and not _QEMU_VERSION.fullmatch(self.qemu_version):
            raise _malformed(f"qemu_version: want MAJOR.MINOR.PATCH, got {self.qemu_version[:80]!r}")
        if (self.checksum_file is None) != (self.measurement is None):
            raise _malformed("tdx_measurement: want both checksum_file and measurement, got one")

    @property
    def two_pass(self) -> bool:
        """Whether QEMU adds all pages of a firmware section before it extends any: MRTD depends on it.

        QEMU 8 does; 9.0 and later do not.

        Raises:
            MeasurementMalformedError: An older QEMU, whose order nobody recorded.
        """
        major = self._qemu_major()
        return major == 8 if self.qemu_single_pass_add_pages is None else self.qemu_single_pass_add_pages

    @property
    def has_pic(self) -> bool:
        """Whether the machine has the old interrupt controller, which its ACPI tables name; QEMU 8 gives it one.

        Raises:
            MeasurementMalformedError: See `two_pass`.
        """
        major = self._qemu_major()
        return major == 8 if self.pic is None else self.pic

    def _qemu_major(self) -> int:
        major = int((self.qemu_version or DEFAULT_QEMU_VERSION).partition(".")[0])
        if major < 8:
            raise _malformed(f"qemu_version: want 8.0.0 or later, got {self.qemu_version}")
        return major


# Machines of one image and shape send the same text; one that cannot be read is not remembered.
@lru_cache(maxsize=_KNOWN_TEXTS)
def parse_vm_config(text: str) -> VmConfig:
    """Read a VmConfig JSON, or a sys-config JSON whose string `vm_config` holds one.

    Members that this project has no use for are skipped.

    Raises:
        MeasurementMalformedError: It is neither.
    """
    members = _object(text, "vm_config")
    if members.has("vm_config"):
        if members.has("os_image_hash"):
            raise _malformed("want a VM config or a sys-config that holds one, got both in one object")
        members = _object(members.text("vm_config"), "vm_config of the sys-config")
    if members.integer("spec_version", SPEC_VERSION, maximum=_MAX_U32) != SPEC_VERSION:
        raise _malformed(f"spec_version: want {SPEC_VERSION}")
    checksum_file, measurement = _tdx_measurement(members)
    return VmConfig(
        os_image_hash=members.sized("os_image_hash", OsImageHash),
        cpu_count=members.integer("cpu_count", maximum=_MAX_U32),
        memory_size=members.integer("memory_size", maximum=_MAX_U64),
        qemu_version=_optional_text(members, "qemu_version"),
        qemu_single_pass_add_pages=_optional_flag(members, "qemu_single_pass_add_pages"),
        pic=_optional_flag(members, "pic"),
        ovmf_variant=_optional_text(members, "ovmf_variant"),
        tdx_attestation_variant=members.text("tdx_attestation_variant", "legacy"),
        checksum_file=checksum_file,
        measurement=measurement,
        image=_optional_text(members, "image"),
        # Upstream writes an empty text where a host named none, and takes it for this.
        host_share_mode=members.text("host_share_mode", "") or "9p",
        pci_hole64_size=members.integer("pci_hole64_size", 0, maximum=_MAX_U64),
        hugepages=members.flag("hugepages", False),
        hotplug_off=members.flag("hotplug_off", False),
        num_gpus=members.integer("num_gpus", 0, maximum=_MAX_U32),
        num_nvswitches=members.integer("num_nvswitches", 0, maximum=_MAX_U32),
        num_nics=members.integer("num_nics", 1, maximum=_MAX_U32),
        num_verity_volumes=members.integer("num_verity_volumes", 0, maximum=_MAX_U32),
        swtpm=members.flag("swtpm", False),
    )


def serialise_vm_config(config: VmConfig) -> str:
    """Write compact JSON; members that upstream leaves out at their default are left out."""
    members: dict[str, object] = {
        "spec_version": SPEC_VERSION,
        **{field.name: getattr(config, field.name) for field in fields(config) if field.name not in _WRITTEN_APART},
        "os_image_hash": config.os_image_hash.hex(),
    }
    for name, default in _OMITTED_AT.items():
        if members[name] == default:
            del members[name]
    if config.checksum_file is not None and config.measurement is not None:
        members["tdx_measurement"] = {
            "checksum_file": b64encode(config.checksum_file).decode(),
            "measurement": b64encode(config.measurement).decode(),
        }
    return json.dumps(members, ensure_ascii=False, separators=(",", ":"))


_WRITTEN_APART = frozenset({"checksum_file", "measurement"})
_OMITTED_AT: dict[str, object] = {
    "qemu_version": None,
    "qemu_single_pass_add_pages": None,
    "pic": None,
    "ovmf_variant": None,
    "tdx_attestation_variant": "legacy",
    "image": None,
    "num_nics": 1,
    "num_verity_volumes": 0,
    "swtpm": False,
}


def _malformed(message: str) -> MeasurementMalformedError:
    return MeasurementMalformedError(f"VM config: {message}")


def _object(text: str, what: str) -> Members:
    value = parse_json(text, what=what, limit=MAX_VM_CONFIG, error=MeasurementMalformedError)
    return Members.of(value, what=what, error=MeasurementMalformedError)


def _optional_text(members: Members, name: str) -> str | None:
    return members.text(name) if members.has(name) else None


def _optional_flag(members: Members, name: str) -> bool | None:
    return members.flag(name) if members.has(name) else None


def _tdx_measurement(members: Members) -> tuple[bytes | None, bytes | None]:
    if not members.has("tdx_measurement"):
        return None, None
    both = Members.of(members.values["tdx_measurement"], what="tdx_measurement", error=MeasurementMalformedError)
    return _base64(both, "checksum_file"), _base64(both, "measurement")


def _base64(members: Members, name: str) -> bytes:
    try:
        return b64decode(members.text(name), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise _malformed(f"tdx_measurement: {name}: want base64") from exc
