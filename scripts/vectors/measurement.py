"""The kinds of the folder `measurement`: images, kernels, documents and captures of real machines.

The files differ in what they hold, so each is run through the same sections; what a file lacks is not there to run.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256, sha384
from pathlib import Path
from typing import Any

from dstack.attestation.quote import TdReport, parse_quote
from dstack.errors import AppraisalError, MeasurementMalformedError
from dstack.measurement.acpi import ACPI_EVENT_TYPE, ACPI_NAMES, ACPI_PAYLOAD, derive_acpi_blobs
from dstack.measurement.authenticode import authenticode, authenticode_sha384, parse_pe
from dstack.measurement.document import parse_measurement_document, reference_values
from dstack.measurement.event_log import Event, RuntimeEvent, parse_event_log, replay_event_log, runtime_event_digest
from dstack.measurement.firmware import CFV_DIGEST, rtmr0_events
from dstack.measurement.kernel import initrd_address, kernel_digest
from dstack.measurement.linux_boot import cmdline_digest, initrd_digest, rtmr1_events, rtmr2_events
from dstack.measurement.mrtd import mrtd
from dstack.measurement.prediction import PredictedEvent, register_of
from dstack.measurement.td_hob import HobWitness, parse_hob_witness, serialise_hob_witness, td_hob
from dstack.measurement.tdvf import Firmware, SectionType, parse_firmware
from dstack.measurement.vm_config import parse_vm_config
from dstack.values import Register
from vectors.cases import WHOLE_FILE, ShapeError, read_file
from vectors.compare import Computation, Computed, Part, Sections, UnsupportedError

_bytes = bytes.fromhex

# Besides this computer's own, folders into which packages were unpacked.
_ROOTS = [Path("/"), *map(Path, filter(None, os.environ.get("PACKAGE_ROOTS", "").split(":")))]
_SECTION_FIELDS = ("data_offset", "raw_size", "gpa", "mem_size", "type", "attributes")
_WITNESS = "80100904000609020b021010"
_CONSTANTS = {
    "separator": (1, 2),
    "calling_efi_app": (1, 1),
    "exit_bs_invocation": (1, 3),
    "exit_bs_success": (1, 4),
    "boot_order": (0, 11),
    "boot0000": (0, 12),
}


def _keys(value: Any) -> object:
    """The sizes for which something is expected, without what is expected."""
    return list(value)


def _firmware(raw: bytes, hob_sizes: Sequence[str] | None) -> Computed:
    return _firmware_facts(parse_firmware(raw), hob_sizes)


def _firmware_facts(firmware: Firmware, hob_sizes: Sequence[str] | None) -> Computed:
    kinds = [section.type for section in firmware.sections]
    facts: dict[str, object] = {}
    if kinds.count(SectionType.TD_HOB) == 1:
        facts |= _witness_facts(firmware.witness, hob_sizes)
    if kinds.count(SectionType.CFV) == 1:
        facts["cfv_sha384"] = sha384(firmware.cfv).hexdigest()
    return {
        **facts,
        "sha256": sha256(firmware.raw).hexdigest(),
        "size": len(firmware.raw),
        "sections": [{name: int(getattr(each, name)) for name in _SECTION_FIELDS} for each in firmware.sections],
        "mrtd_single_pass": mrtd(firmware, two_pass=False).hex(),
        "mrtd_two_pass": mrtd(firmware, two_pass=True).hex(),
    }


def _witness(raw: str, hob_sizes: Sequence[str] | None) -> Computed:
    return _witness_facts(parse_hob_witness(_bytes(raw)), hob_sizes)


def _witness_facts(witness: HobWitness, hob_sizes: Sequence[str] | None) -> dict[str, object]:
    text = serialise_hob_witness(witness).hex()
    return {
        "td_hob_sha384": {size: sha384(td_hob(witness, int(size))).hexdigest() for size in hob_sizes or ()},
        "td_hob": text,
        "td_hob_witness": text,
        "witness": text,
    }


def _packaged_firmware(source: Mapping[str, str], digest: str, hob_sizes: Sequence[str] | None) -> Computed:
    return _firmware_facts(parse_firmware(_installed(source, digest)), hob_sizes)


def _refused_firmware(source: Mapping[str, str], digest: str | None) -> Computed:
    if digest is None:
        raise UnsupportedError("no digest says which file it is")
    parse_firmware(_installed(source, digest))
    return {}


def _installed(source: Mapping[str, str], digest: str) -> bytes:
    """The file of a Debian package, if that very version is installed."""
    for root in _ROOTS:
        path = root / source["member"]
        if path.is_file() and sha256(content := path.read_bytes()).hexdigest() == digest:
            return content
    raise UnsupportedError(f"{source['package']} {source['version']} is not installed")


def _kernel(raw: bytes, initrd_size: int, by_memory: Mapping[str, Sequence[str]] | None) -> Computed:
    return {
        "sha256": sha256(raw).hexdigest(),
        "unpatched_sha256": authenticode(raw, "sha256").hex(),
        "unpatched_sha384": authenticode_sha384(raw).hex(),
        "by_memory": {
            memory: {name: value for name, value in _patched(raw, initrd_size, int(memory)).items() if name in names}
            for memory, names in (by_memory or {}).items()
        },
    }


def _patched(raw: bytes, initrd_size: int, memory: int) -> dict[str, object]:
    digest = kernel_digest(raw, initrd_size=initrd_size, memory_size=memory)
    return {
        "initrd_addr": initrd_address(raw, initrd_size=initrd_size, memory_size=memory),
        "authenticode_sha384": digest.hex(),
        "rtmr1": register_of(1, rtmr1_events(digest)).hex(),
    }


def _packaged_kernel(source: Mapping[str, str], digest: str, sizes: Sequence[str] | None) -> Computed:
    raw = _installed(source, digest)
    start, end = parse_pe(raw).certificates
    return {
        "authenticode_sha256": authenticode(raw, "sha256").hex(),
        "authenticode_sha384": authenticode_sha384(raw).hex(),
        "patched_sha384_initrd_30000000": {
            size: kernel_digest(raw, initrd_size=30_000_000, memory_size=int(size)).hex() for size in sizes or ()
        },
        "cert_table": [start, end - start],
    }


def _cmdline(text: str) -> Computed:
    return {"digest": _cmdline_digest(text).hex()}


def _cmdline_digest(text: str) -> Register:
    """Files state the command line with what QEMU adds to it, or without."""
    return cmdline_digest(text.removesuffix(" initrd=initrd"))


def _initrd(content: str) -> Computed:
    return {"digest": initrd_digest(_bytes(content)).hex()}


def _rtmr2(cmdline: str, initrd: str) -> Computed:
    return {"rtmr2": register_of(2, rtmr2_events(_cmdline_digest(cmdline), initrd_digest(_bytes(initrd)))).hex()}


def _events() -> dict[int, tuple[PredictedEvent, ...]]:
    """The order of events, for the digests in it that depend on nothing."""
    zero = Register(bytes(Register.SIZE))
    acpi = dict.fromkeys(ACPI_NAMES, zero)
    return {0: rtmr0_events(parse_hob_witness(_bytes(_WITNESS)), 2**31, acpi), 1: rtmr1_events(zero)}


def _variables() -> Computed:
    names = ("SecureBoot", "PK", "KEK", "db", "dbx")
    return {name: _events()[0][2 + at].event.digest.hex() for at, name in enumerate(names)}


def _constants() -> Computed:
    events = _events()
    found = {name: events[imr][at].event.digest.hex() for name, (imr, at) in _CONSTANTS.items()}
    return {**found, "cfv": CFV_DIGEST.hex()}


def _runtime_event(name: str, payload: str) -> Computed:
    digests = {version: runtime_event_digest(RuntimeEvent(name, _bytes(payload), version)) for version in (1, 2)}
    return {f"digest_v{version}": digest.hex() for version, digest in digests.items()}


def _acpi(tables: bytes) -> Computed:
    """What follows from a blob of tables, under the names that a file may use."""
    blobs = derive_acpi_blobs(tables)
    digests = {name: digest.hex() for name, digest in blobs.digests.items()}
    return {
        **{name.replace("-", "_"): digest for name, digest in digests.items()},
        "digests": digests,
        "acpi_digests": digests,
        "rsdp": blobs.rsdp.hex(),
        "loader_sha384": digests["acpi-loader"],
        "rsdp_sha384": digests["acpi-rsdp"],
        "tables_sha384": digests["acpi-tables"],
    }


def _lite(
    document: str,
    checksums: str,
    acpi: Mapping[str, str],
    configs: Sequence[Mapping[str, Any]] | None,
    rejected: Sequence[int] | None,
    cmdline: str | None,
    initrd: str | None,
) -> Computed:
    parsed = parse_measurement_document(base64.b64decode(document, validate=True))
    if cmdline is not None and parsed.cmdline != _cmdline_digest(cmdline):
        raise AppraisalError("document: its cmdline digest is not that of the cmdline beside it")
    if initrd is not None and parsed.initrd != initrd_digest(_bytes(initrd)):
        raise AppraisalError("document: its initrd digest is not that of the initrd beside it")

    def predicted(config: Mapping[str, Any]) -> Any:
        carried = {"tdx_measurement": {"checksum_file": checksums, "measurement": document}}
        return reference_values(parse_vm_config(json.dumps({**config, **carried})), _acpi_log(acpi))

    return {
        "expected": [
            {
                "vm_config": dict(config),
                **{name: getattr(predicted(config), name).hex() for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2")},
            }
            for config in configs or ()
        ],
        "reject_memory_sizes": [
            size for size in rejected or () if _refuses(predicted, {**(configs or [{}])[0], "memory_size": size})
        ],
    }


def _refuses(predicted: Callable[[Mapping[str, Any]], Any], config: Mapping[str, Any]) -> bool:
    try:
        predicted(config)
    except MeasurementMalformedError:
        return True
    return False


def _acpi_log(digests: Mapping[str, str]) -> tuple[Event, ...]:
    return tuple(Event(0, ACPI_EVENT_TYPE, _bytes(digests[name]), name, ACPI_PAYLOAD) for name in ACPI_NAMES)


def _capture(quote: str, event_log: Any, vm_config: Any) -> Computed:
    """A real machine: its log folds into its quote, and what follows from its shape alone is as logged."""
    report = parse_quote(_bytes(quote)).body
    if not isinstance(report, TdReport):
        raise AppraisalError("capture: want a TDX quote")
    log = parse_event_log(event_log if isinstance(event_log, str) else json.dumps(event_log))
    replayed = replay_event_log(log)
    quoted = {0: report.rtmr0, 1: report.rtmr1, 2: report.rtmr2, 3: report.rtmr3}
    wrong = [f"rtmr{imr}" for imr in quoted if quoted[imr] != replayed[imr]]
    if wrong:
        raise AppraisalError(f"capture: the log does not fold into {', '.join(wrong)}")
    if vm_config is not None:
        _check_shape(report, log, vm_config if isinstance(vm_config, str) else json.dumps(vm_config))
    return {
        # Whatever else the file states: that it came here means that all of the above held.
        "quote": quote,
        "report_data": report.report_data.hex(),
        "mrtd": report.mr_td.hex(),
        **{f"rtmr{imr}": register.hex() for imr, register in replayed.items()},
    }


def _check_shape(report: TdReport, log: Sequence[Event], config_text: str) -> None:
    """RTMR0 from the memory size and the three logged ACPI digests; all four registers where a document is at hand."""
    config = parse_vm_config(config_text)
    logged = [event for event in log if event.imr == 0 and event.event_type == ACPI_EVENT_TYPE]
    if len(logged) != len(ACPI_NAMES):
        raise UnsupportedError("the log was stripped of its ACPI events")
    # Old guests do not name the three; loader, pointer and tables come in this order.
    acpi = {name: Register(event.digest) for name, event in zip(ACPI_NAMES, logged, strict=True)}
    if config.tdx_attestation_variant == "lite" and config.measurement is not None:
        values = reference_values(config, _acpi_log({name: digest.hex() for name, digest in acpi.items()}))
        wanted = (values.mrtd, values.rtmr0, values.rtmr1, values.rtmr2)
        if wanted != (report.mr_td, report.rtmr0, report.rtmr1, report.rtmr2):
            raise AppraisalError("capture: the registers are not those of its measurement document")
        return
    events = rtmr0_events(parse_hob_witness(_bytes(_WITNESS)), config.memory_size, acpi)
    if register_of(0, events) != report.rtmr0:
        raise AppraisalError("capture: rtmr0 is not the one that follows from memory size and ACPI digests")


_SECTIONS: Sections = {
    "tdvf": (Computation(("@file",), _firmware, optional=(Part("td_hob_sha384", _keys),)),),
    "firmware": (
        Computation(("@file",), _firmware, optional=(Part("td_hob_sha384", _keys),)),
        Computation(("source", "sha256"), _packaged_firmware, optional=(Part("td_hob_sha384", _keys),)),
    ),
    "td_hob": (Computation(("witness",), _witness, optional=(Part("td_hob_sha384", _keys),)),),
    "negative": (Computation(("source",), _refused_firmware, optional=("sha256",), refuses=True),),
    "kernel": (
        Computation(
            ("@file", "initrd_size"),
            _kernel,
            optional=(Part("by_memory", lambda value: {size: list(names) for size, names in value.items()}),),
        ),
    ),
    "cases": (
        Computation(("source", "sha256"), _packaged_kernel, optional=(Part("patched_sha384_initrd_30000000", _keys),)),
    ),
    "cmdline": (Computation(("text",), _cmdline),),
    "initrd": (Computation(("hex",), _initrd),),
    "efi_variables": (Computation((), _variables),),
    "constants": (Computation((), _constants),),
    "runtime_event": (Computation(("name", "payload"), _runtime_event),),
    "acpi": (Computation(("@file",), _acpi),),
    "lite_document": (
        Computation(
            ("measurement_base64", "checksum_file_base64", "acpi_digests"),
            _lite,
            optional=(
                Part("expected", lambda value: [each["vm_config"] for each in value]),
                Part("reject_memory_sizes", list),
                "cmdline",
                "initrd_hex",
            ),
        ),
    ),
    WHOLE_FILE: (
        Computation(("cmdline.text", "initrd.hex"), _rtmr2),
        Computation(("quote", "event_log"), _capture, optional=("vm_config",)),
    ),
}


def kinds(found: Mapping[str, Path]) -> dict[str, Sections]:
    """The sections of each kind of this folder that has any of them, whatever its name: new captures have new ones."""
    return {kind: _SECTIONS for kind, path in found.items() if kind.startswith("measurement/") and _is_known(path)}


def _is_known(path: Path) -> bool:
    try:
        members = read_file(path)
    except ShapeError:
        return True
    return any(name in members for name in _SECTIONS if name) or {"quote", "event_log"} <= members.keys()
