"""Reference values: what a machine's registers should be, as an auditor measured or wrote them down.

    {"registers": {"mrtd": "...", "rtmr0": "...", ...}, "acpi_tables_verified": true, "not_computable": {}}

which is what `dstack measure --json` writes, or the registers alone as one flat object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dstack.attestation.quote import TdReport
from dstack.errors import MeasurementMalformedError
from dstack.measurement.result import REGISTERS
from dstack.measurement.strict_json import Members, parse_json
from dstack.values import Register

MAX_REFERENCE = 8 * 1024 * 1024
_IN_REPORT = {"mrtd": "mr_td"}


@dataclass(frozen=True, slots=True)
class Reference:
    """Registers by their names in `REGISTERS`; what is missing was not or could not be measured, and why.

    Attributes:
        registers: The values.
        missing: Why others are not there, by name.
        acpi_tables_verified: Whether RTMR0 rests on ACPI tables that somebody else than the machine has seen.
        origin: Where the values come from, for people.
    """

    registers: Mapping[str, Register]
    missing: Mapping[str, str]
    acpi_tables_verified: bool
    origin: str


def parse_reference(raw: bytes) -> Reference:
    """Read reference values.

    Raises:
        MeasurementMalformedError: Not JSON, or no registers in it, or one of another size.
    """
    value = parse_json(raw, what="reference", limit=MAX_REFERENCE, error=MeasurementMalformedError)
    document = Members.of(value, what="reference", error=MeasurementMalformedError)
    measured = document.has("registers")
    registers = document
    if measured:
        registers = Members.of(document.values["registers"], what="registers", error=MeasurementMalformedError)
    registers.refuse_others(frozenset(REGISTERS))
    found = {name: registers.sized(name, Register) for name in REGISTERS if registers.has(name)}
    if not found:
        raise MeasurementMalformedError(f"reference: want one or more of {', '.join(REGISTERS)}, got none")
    return Reference(found, _missing(document), document.flag("acpi_tables_verified", not measured), "reference")


def quoted_registers(report: TdReport) -> dict[str, Register]:
    """The registers of a report, by their names in `REGISTERS`."""
    return {name: getattr(report, _IN_REPORT.get(name, name)) for name in REGISTERS}


def _missing(document: Members) -> dict[str, str]:
    if not document.has("not_computable"):
        return {}
    members = Members.of(document.values["not_computable"], what="not_computable", error=MeasurementMalformedError)
    return {name: members.text(name) for name in members.values if name in REGISTERS}
