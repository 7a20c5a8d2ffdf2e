"""What a machine must show, all of it: registers, events and identities; and how a quote compares with that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from dstack.measurement.acpi import AcpiDigests
from dstack.measurement.event_log import RuntimeEvent
from dstack.measurement.prediction import Input, Origin, PredictedEvent
from dstack.measurement.rtmr3 import SYSTEM_READY
from dstack.values import Register

REGISTERS = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mr_config_id", "mr_owner", "mr_owner_config")

# MRTD has no events; it follows from these.
MRTD_INPUTS = (Input.FIRMWARE, Input.QEMU)


class Verdict(StrEnum):
    """What a comparison came to."""

    MATCHED = "matched"
    MISMATCHED = "mismatched"
    NOT_COMPUTABLE = "not computable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A machine's measurement.

    Attributes:
        registers: Those that could be computed, by the names in `REGISTERS`.
        missing: Why the others could not, by name.
        events: What RTMR0 to RTMR3 fold, as far as it is known.
        identities: Hashes and ids that follow, as bytes by name.
        acpi: Where the ACPI digests came from; None if nowhere.
        image_origin: The image's files, or its measurement document.
    """

    registers: Mapping[str, Register]
    missing: Mapping[str, str]
    events: tuple[PredictedEvent, ...]
    identities: Mapping[str, bytes]
    acpi: AcpiDigests | None
    image_origin: Origin

    @property
    def acpi_tables_verified(self) -> bool:
        """Whether the content of the ACPI tables was seen by whoever computed RTMR0."""
        return self.acpi is not None and self.acpi.source.verified


@dataclass(frozen=True, slots=True)
class Comparison:
    """One register of a quote beside the computed one; `wanted` is None where none could be computed."""

    name: str
    verdict: Verdict
    wanted: Register | None
    got: Register
    note: str = ""


def compare(measurement: Measurement, quoted: Mapping[str, Register]) -> tuple[Comparison, ...]:
    """Compare a quote's registers with the computed ones; all of them, whatever the first says.

    Args:
        measurement: What a machine must show.
        quoted: All of `REGISTERS` as a quote has them. Whether the quote is genuine is another question.
    """
    return tuple(_compared(measurement, name, quoted[name]) for name in REGISTERS)


def overall(comparisons: Sequence[Comparison]) -> Verdict:
    """Give one word: matched only if every register was computed, from nothing but inputs of ours, and is equal."""
    verdicts = {comparison.verdict for comparison in comparisons}
    for worst in (Verdict.MISMATCHED, Verdict.NOT_COMPUTABLE):
        if worst in verdicts:
            return worst
    return Verdict.MATCHED if comparisons else Verdict.NOT_COMPUTABLE


def app_events(events: Sequence[RuntimeEvent]) -> tuple[RuntimeEvent, ...]:
    """Keep what an app extended by itself: the events behind the first `system-ready`."""
    names = [event.name for event in events]
    return tuple(events[names.index(SYSTEM_READY) + 1 :]) if SYSTEM_READY in names else ()


def _compared(measurement: Measurement, name: str, got: Register) -> Comparison:
    wanted = measurement.registers.get(name)
    if name == "mr_config_id" and not any(got):
        return Comparison(name, Verdict.MATCHED, got, got, "not used by this host")
    if wanted is None:
        return Comparison(name, Verdict.NOT_COMPUTABLE, None, got, measurement.missing.get(name, "not predicted"))
    if wanted != got:
        return Comparison(name, Verdict.MISMATCHED, wanted, got)
    if name == "rtmr0" and not measurement.acpi_tables_verified:
        note = "equal, but the ACPI digests are the machine's own claim: the content of its tables was not seen"
        return Comparison(name, Verdict.NOT_COMPUTABLE, wanted, got, note)
    return Comparison(name, Verdict.MATCHED, wanted, got)
