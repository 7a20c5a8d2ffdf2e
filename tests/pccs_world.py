"""A simulated maker with collateral services on loopback, and a clock that tests move."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dstack.attestation.quote import Quote, parse_quote
from dstack.attestation.roots import TrustedRoots, simulated_root
from dstack.measurement.registers import ZERO_REGISTER
from dstack.simulator.pccs import Behaviour, pccs_app
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.transport.collateral import PlatformModel
from dstack.transport.collateral_fetch import PcsClient
from dstack.transport.collateral_store import CollateralStore
from dstack.transport.listener import Listener
from dstack.values import ReportData

BORN = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)


@dataclass(slots=True)
class Clock:
    """A clock that stands until it is moved."""

    now: datetime = BORN

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **by: float) -> None:
        """Let time pass."""
        self.now += timedelta(**by)


@dataclass
class PccsWorld:
    """Stores and services of one maker."""

    folder: Path
    stack: ExitStack
    pki: SimulatedPki = field(default_factory=lambda: SimulatedPki.generate(BORN, seed=b"pccs"))
    clock: Clock = field(default_factory=Clock)

    @property
    def roots(self) -> TrustedRoots:
        """Trust in this maker alone."""
        return TrustedRoots((simulated_root(self.pki.root_der),))

    @property
    def model(self) -> PlatformModel:
        """The platform."""
        return PlatformModel("tdx", "platform", self.pki.platform.fmspc)

    @property
    def quote(self) -> Quote:
        """A quote of the platform."""
        registers = TdRegisters(*[ZERO_REGISTER] * 5)
        return parse_quote(make_quote(self.pki, registers=registers, report_data=ReportData(bytes(64))))

    def serve(self, behaviour: Behaviour, *, clock: Clock | None = None) -> str:
        """Start a service, perhaps with a clock of its own; returns its URL."""
        app = pccs_app(self.pki, clock or self.clock, behaviour)
        listener = self.stack.enter_context(Listener(app).running())
        return f"http://127.0.0.1:{listener.port}"

    def client(self, url: str, **limits: float) -> PcsClient:
        """Someone who asks it."""
        return self.stack.enter_context(PcsClient(url, self.roots, **limits))

    def store(self, *behaviours: Behaviour, patience: float = 20.0) -> CollateralStore:
        """A store in the folder, over a service for each of *behaviours*."""
        clients = [self.client(self.serve(behaviour), wait=10.0) for behaviour in behaviours]
        store = CollateralStore(self.folder, roots=self.roots, clock=self.clock, endpoints=clients, patience=patience)
        return self.stack.enter_context(closing(store))


@contextmanager
def pccs_world(folder: Path) -> Iterator[PccsWorld]:
    """A world whose services end with the `with` block."""
    with ExitStack() as stack:
        yield PccsWorld(folder, stack)


def wait_until(holds: Callable[[], bool]) -> None:
    """Return as soon as *holds*; after 20 s it is an error."""
    pause = threading.Event()
    for _ in range(2000):
        if holds():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come to hold within 20 s")
