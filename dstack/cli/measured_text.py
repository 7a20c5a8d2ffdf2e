"""Measurements and comparisons for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dstack.measurement.prediction import Input
from dstack.measurement.result import REGISTERS, Comparison, Measurement, Verdict


def measurement_text(measurement: Measurement, sequence: str, claims: Mapping[str, str]) -> Iterator[str]:
    """The registers, then their events with origin and inputs, then identities."""
    for name in REGISTERS[:6]:
        if name in measurement.registers:
            yield f"{name:13} {measurement.registers[name].hex()}"
        else:
            yield f"{name:13} not computable: {measurement.missing.get(name, 'nothing says it')}"
    yield ""
    yield f"image         {measurement.image_origin.value}"
    yield f"ACPI          {_acpi(measurement)}"
    yield f"RTMR3         boot sequence {sequence}"
    for predicted in measurement.events:
        where = f"RTMR{predicted.event.imr}"
        yield f"{where}  {predicted.event.extended.hex()[:16]}...  {predicted.label[:80]}"
        yield f"       {predicted.origin.value}; depends on {_inputs(predicted.depends_on)}"
    yield ""
    for name, raw in measurement.identities.items():
        yield f"{name:21} {raw.hex() or '-'}"
    for name, text in claims.items():
        yield f"{name:21} {text} (claimed by what is compared)"


def comparison_text(comparisons: Sequence[Comparison], verdict: Verdict) -> Iterator[str]:
    """A line for each register, and the verdict last."""
    yield ""
    for each in comparisons:
        yield f"{each.name:15} {each.verdict.value}{': ' + each.note if each.note else ''}"
        if each.verdict is Verdict.MISMATCHED and each.wanted is not None:
            yield f"{'':15} computed {each.wanted.hex()}"
            yield f"{'':15} quote    {each.got.hex()}"
    yield f"{'verdict':15} {_sentence(comparisons, verdict)}"


def comparison_facts(comparisons: Sequence[Comparison], verdict: Verdict) -> dict[str, object]:
    """The same as values that JSON can carry."""
    return {
        "verdict": verdict.value,
        "full_match": full_match(comparisons),
        "comparison": [
            {
                "register": each.name,
                "verdict": each.verdict.value,
                "computed": None if each.wanted is None else each.wanted.hex(),
                "quote": each.got.hex(),
                "note": each.note,
            }
            for each in comparisons
        ],
    }


def full_match(comparisons: Sequence[Comparison]) -> bool:
    """Whether every register was compared and matched, with no relaxation."""
    names = {each.name for each in comparisons}
    return names == set(REGISTERS) and all(each.verdict is Verdict.MATCHED for each in comparisons)


def _sentence(comparisons: Sequence[Comparison], verdict: Verdict) -> str:
    if verdict is not Verdict.MATCHED or full_match(comparisons):
        return verdict.value
    unverified = any(each.verdict is not Verdict.MATCHED for each in comparisons)
    left_out = [name for name in REGISTERS if name not in {each.name for each in comparisons}]
    reasons = ["the content of the ACPI tables was not seen"] if unverified else []
    reasons += [f"not compared: {', '.join(left_out)}"] if left_out else []
    return f"{verdict.value}, but not in full ({'; '.join(reasons)})"


def _acpi(measurement: Measurement) -> str:
    if measurement.acpi is None:
        return "no digests"
    seen = "" if measurement.acpi_tables_verified else "; acpi_tables_verified: false"
    return f"{measurement.acpi.source.value}: {measurement.acpi.detail[:200]}{seen}"


def _inputs(inputs: Sequence[Input]) -> str:
    return ", ".join(each.value for each in inputs) or "nothing known"
