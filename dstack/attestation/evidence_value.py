"""Evidence as a value, whatever form it came in."""

from __future__ import annotations

from dataclasses import dataclass

from dstack.measurement.event_log import Event, RuntimeEvent
from dstack.values import ReportData

MAX_EVIDENCE = 10 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an attester sends.

    Attributes:
        quote: A DCAP quote, unparsed.
        event_log: Boot and runtime events; stripped of what a certificate has no room for, perhaps.
        runtime_events: What RTMR3 is replayed from.
        report_data: What the attester says the quote's report data is.
        config: A VM config, or the whole sys-config that holds one; JSON, or empty.
    """

    quote: bytes
    event_log: tuple[Event, ...]
    runtime_events: tuple[RuntimeEvent, ...]
    report_data: ReportData
    config: str
