"""What came of a run, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from vectors.apart import reason
from vectors.compare import Tally

_SHOWN = 200


def table(tallies: Sequence[Tally], unsupported: Sequence[str]) -> Iterator[str]:
    """The lines of a table of kinds, then of failures, then of what was not compared."""
    width = max((len(tally.kind) for tally in tallies), default=0)
    yield f"{'kind':{width}}  {'cases':>5}  {'passed':>6}  {'failed':>6}"
    for tally in tallies:
        yield f"{tally.kind:{width}}  {tally.cases:5}  {tally.passed:6}  {tally.failed:6}"
    cases, failed = sum(tally.cases for tally in tallies), sum(tally.failed for tally in tallies)
    yield f"{'all':{width}}  {cases:5}  {cases - failed:6}  {failed:6}"
    for tally in tallies:
        for each in tally.failures:
            yield f"FAILED {tally.kind} {each.case} {each.member}"
            yield f"  expected {_short(each.expected)}"
            yield f"  got      {_short(each.got)}"
    for tally in tallies:
        apart = {member: why for member in sorted(tally.not_compared) if (why := reason(tally.kind, member))}
        if gaps := sorted(tally.not_compared - apart.keys()):
            yield f"not compared in {tally.kind}: {', '.join(gaps)}"
        for member, why in apart.items():
            yield f"left apart in {tally.kind}: {member} ({why})"
        if tally.unsupported:
            yield f"cases of {tally.kind} that cannot be run here, not counted: {tally.unsupported}"
    if unsupported:
        yield f"kinds not supported yet, none of their cases counted: {', '.join(unsupported)}"


def as_json(tallies: Sequence[Tally], unsupported: Sequence[str]) -> str:
    """The same, whole, as one JSON object."""
    kinds = [
        {
            "kind": tally.kind,
            "cases": tally.cases,
            "passed": tally.passed,
            "failed": tally.failed,
            "unsupported": tally.unsupported,
            "failures": [asdict(each) for each in tally.failures],
            "not_compared": sorted(name for name in tally.not_compared if not reason(tally.kind, name)),
            "left_apart": sorted(name for name in tally.not_compared if reason(tally.kind, name)),
        }
        for tally in tallies
    ]
    totals = {name: sum(getattr(tally, name) for tally in tallies) for name in ("cases", "passed", "failed")}
    return json.dumps({"kinds": kinds, "totals": totals, "unsupported": list(unsupported)}, indent=2)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"
