"""The machine under a guest: registers that can only be extended, and quotes over them."""

from __future__ import annotations

from typing import Protocol

from dstack.attestation.evidence import Evidence
from dstack.measurement.event_log import Event, RuntimeEvent, runtime_events
from dstack.values import ReportData


class Platform(Protocol):
    """One TD. The simulator implements it in memory."""

    @property
    def config(self) -> str:
        """The VM config as JSON, as the host stated it."""
        ...

    def quote(self, report_data: ReportData) -> bytes:
        """A DCAP quote over the registers as they are now."""
        ...

    def extend(self, event: RuntimeEvent) -> None:
        """Extend RTMR3 by *event* and append it to the event log."""
        ...

    def event_log(self) -> tuple[Event, ...]:
        """Everything that was extended since power-on, runtime digests included."""
        ...


def platform_evidence(platform: Platform, report_data: ReportData) -> Evidence:
    """Quote, event log and config together; the caller sees to it that nothing is extended meanwhile."""
    events = platform.event_log()
    return Evidence(platform.quote(report_data), events, runtime_events(events), report_data, platform.config)
