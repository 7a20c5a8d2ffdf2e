"""A store of captured ACPI tables: which blob belongs to which shape of machine (measurement.md 3.3).

A store is a folder with an `index.json` and one file for each reviewed blob. Its digests are not in it: they are
computed from the blobs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

from dstack.errors import MeasurementMalformedError
from dstack.measurement.strict_json import Members, parse_json
from dstack.measurement.vm_config import DEFAULT_QEMU_VERSION, VmConfig

INDEX_NAME = "index.json"
MAX_INDEX = 1024 * 1024
MAX_ENTRIES = 4096

_FILE_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9._+-]{0,254}", re.ASCII)
_MAX_U64 = 2**64 - 1
_ENTRY = frozenset({"shape", "tables", "note"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AcpiShape:
    """Everything of a VM config that ACPI tables can depend on."""

    qemu_version: str
    cpu_count: int
    memory_size: int
    pic: bool
    host_share_mode: str
    pci_hole64_size: int
    hugepages: bool
    hotplug_off: bool
    num_gpus: int
    num_nvswitches: int
    num_nics: int
    num_verity_volumes: int

    @classmethod
    def of(cls, config: VmConfig) -> AcpiShape:
        """Take the shape from a VM config; an unset QEMU version is the default one."""
        return cls(
            qemu_version=config.qemu_version or DEFAULT_QEMU_VERSION,
            cpu_count=config.cpu_count,
            memory_size=config.memory_size,
            pic=config.has_pic,
            host_share_mode=config.host_share_mode,
            pci_hole64_size=config.pci_hole64_size,
            hugepages=config.hugepages,
            hotplug_off=config.hotplug_off,
            num_gpus=config.num_gpus,
            num_nvswitches=config.num_nvswitches,
            num_nics=config.num_nics,
            num_verity_volumes=config.num_verity_volumes,
        )


@dataclass(frozen=True, slots=True)
class StoredTables:
    """One blob of a store: its file name, and what its reviewer says of it."""

    tables: str
    note: str


def parse_store_index(raw: bytes) -> Mapping[AcpiShape, StoredTables]:
    """Read the index of a store.

    Args:
        raw: JSON, a list of objects with `shape`, `tables` (a file name) and perhaps `note`.

    Raises:
        MeasurementMalformedError: Another form, a file name that is a path, or one shape listed twice.
    """
    value = parse_json(raw, what="ACPI store", limit=MAX_INDEX, error=MeasurementMalformedError)
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise _malformed(f"want a list of at most {MAX_ENTRIES} entries")
    entries: dict[AcpiShape, StoredTables] = {}
    for at, item in enumerate(value):
        members = Members.of(item, what=f"ACPI store: entry {at}", error=MeasurementMalformedError)
        members.refuse_others(_ENTRY)
        shape = _shape(members, at)
        if shape in entries:
            raise _malformed(f"entry {at}: its shape is listed twice")
        file = members.text("tables")
        if not _FILE_NAME.fullmatch(file):
            raise _malformed(f"entry {at}: want a plain file name, got {file[:80]!r}")
        entries[shape] = StoredTables(file, members.text("note", ""))
    return MappingProxyType(entries)


def serialise_store_index(entries: Mapping[AcpiShape, StoredTables]) -> bytes:
    """Write the index of a store."""
    listed = [{"shape": asdict(shape), "tables": each.tables, "note": each.note} for shape, each in entries.items()]
    return json.dumps(listed, indent=2).encode() + b"\n"


def _shape(members: Members, at: int) -> AcpiShape:
    what = f"ACPI store: entry {at}: shape"
    shape = Members.of(members.values.get("shape"), what=what, error=MeasurementMalformedError)
    shape.refuse_others(frozenset(AcpiShape.__slots__))
    return AcpiShape(
        qemu_version=shape.text("qemu_version"),
        cpu_count=shape.integer("cpu_count", maximum=_MAX_U64),
        memory_size=shape.integer("memory_size", maximum=_MAX_U64),
        pic=shape.flag("pic"),
        host_share_mode=shape.text("host_share_mode"),
        pci_hole64_size=shape.integer("pci_hole64_size", maximum=_MAX_U64),
        hugepages=shape.flag("hugepages"),
        hotplug_off=shape.flag("hotplug_off"),
        num_gpus=shape.integer("num_gpus", maximum=_MAX_U64),
        num_nvswitches=shape.integer("num_nvswitches", maximum=_MAX_U64),
        num_nics=shape.integer("num_nics", maximum=_MAX_U64),
        num_verity_volumes=shape.integer("num_verity_volumes", maximum=_MAX_U64),
    )


def _malformed(message: str) -> MeasurementMalformedError:
    return MeasurementMalformedError(f"ACPI store: {message}")
