"""The collateral store: kept on disk, refreshed from endpoints, verified on arrival, never going back.

What is in force is served at once, while something newer is fetched in the background; only what has run out, by its
issuer's own dates and no others, makes a caller wait. Who asks too often, for what nobody knows, gets the last failure
again. "Could not ask" is an error and never an answer.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from dstack.attestation.certificates import parse_chain, require_issued
from dstack.attestation.collateral import Collateral
from dstack.attestation.quote import Quote
from dstack.attestation.roots import TrustedRoots
from dstack.attestation.verify_collateral import VerifiedCollateral
from dstack.errors import (
    CollateralFatalError,
    CollateralTransientError,
    CollateralUnavailableError,
    InputError,
    QuoteMalformedError,
    QuoteUntrustedError,
)
from dstack.transport.collateral import CollateralSource, DirectoryCollateral, PlatformModel
from dstack.transport.collateral_archive import MOST_MODELS, CollateralArchive
from dstack.transport.collateral_fetch import TOTAL_SECONDS, PcsClient
from dstack.transport.collateral_versions import growing_numbers, is_newer, verify_version

REFRESH_AFTER = timedelta(days=1)
_FIRST_RETRY, _LAST_RETRY = timedelta(seconds=10), timedelta(hours=1)
_FATAL_RETRY = timedelta(minutes=10)
_MOST_FLIGHTS = 4
# Callers, whose threads are needed for those whose platforms are known.
_MOST_WAITING = 16
# How long the end of a program waits for a fetch: less than a service manager waits for the program.
_CLOSE_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Endpoint(Protocol):
    """Somewhere to fetch from; `PcsClient` is one."""

    @property
    def url(self) -> str:
        """What errors call it."""
        ...

    def fetch(self, model: PlatformModel) -> Collateral:
        """Everything about *model*.

        Raises:
            CollateralTransientError: Ask again later.
            CollateralFatalError: Asking again will not help.
        """
        ...


@dataclass(slots=True)
class _Slot:
    """What is known about one model."""

    current: VerifiedCollateral | None = None
    checked_at: datetime | None = None
    failure: CollateralUnavailableError | None = None
    failures: int = 0
    not_before: datetime | None = None
    flight: Future[VerifiedCollateral] | None = None


class CollateralStore:
    """A `CollateralSource` over a folder and any number of endpoints, asked in their order.

    Args:
        folder: Where every version is kept; files that a person puts there are taken too.
        roots: What statements must end in to be kept or served.
        endpoints: Where newer statements come from; with none, the folder is all there is.
        clock: The time now, aware.
        patience: Seconds that a caller waits for statements that are not there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        roots: TrustedRoots,
        clock: Callable[[], datetime],
        endpoints: Sequence[Endpoint] = (),
        patience: float = TOTAL_SECONDS,
    ) -> None:
        self._archive = CollateralArchive(folder)
        self._roots = roots
        self._endpoints = tuple(endpoints)
        self._clock = clock
        self._patience = patience
        self._lock = threading.Lock()
        self._waiting = threading.BoundedSemaphore(_MOST_WAITING)
        self._slots: dict[PlatformModel, _Slot] = {}
        self._seen: dict[tuple[str, str], int] = {}
        self._is_closed = False
        for model in self._archive.models():
            self._load(model, clock())

    def close(self) -> None:
        """Fetch nothing any more, and wait a moment for what is being fetched; what is in force is still served."""
        with self._lock:
            self._is_closed = True
            flights = [slot.flight for slot in self._slots.values() if slot.flight is not None]
        wait(flights, timeout=_CLOSE_SECONDS)

    def collateral_for(self, quote: Quote) -> Collateral:
        """As `CollateralSource` says; endpoints are asked only for quotes whose certificates a root has issued."""
        model = PlatformModel.of(quote)
        with self._lock:
            known = model in self._slots
        if not known:
            _require_rooted(quote, self._roots)
        return self.verified_for(model).collateral

    def verified_for(self, model: PlatformModel) -> VerifiedCollateral:
        """What is in force about *model*, fetched if it has to be.

        Raises:
            CollateralTransientError: There is none, and an endpoint that might know was down, slow or busy.
            CollateralFatalError: There is none, and every endpoint answered that it has none, or none that is genuine.
            CollateralUnavailableError: There is none, and no endpoint to ask.
        """
        return self._in_force(model) or self._await(self._start(model))

    def refresh(self, model: PlatformModel) -> VerifiedCollateral:
        """Ask the endpoints now, whatever there is, and keep what they say.

        Raises:
            CollateralTransientError: As `verified_for`.
            CollateralFatalError: As `verified_for`.
            CollateralUnavailableError: As `verified_for`.
        """
        with self._lock:
            self._slot(model).not_before = None
        return self._await(self._start(model))

    def _in_force(self, model: PlatformModel) -> VerifiedCollateral | None:
        """From memory, else from disk; starts a refresh where one is due."""
        now = self._clock()
        with self._lock:
            current = self._slot(model).current
        if current is None or now not in current.period:
            current = self._load(model, now)
        if current is None:
            return None
        if self._endpoints and self._is_due(model, current, now):
            try:
                self._start(model)
            except CollateralUnavailableError as exc:
                _log.debug("collateral for %s: not refreshed: %s", model, exc)
        return current

    def _is_due(self, model: PlatformModel, current: VerifiedCollateral, now: datetime) -> bool:
        """A day after the last look, and towards the end of its life in any case."""
        with self._lock:
            checked_at = self._slot(model).checked_at
        born = current.parts.tcb_info.issue_date
        late = current.expires_at - (current.expires_at - born) / 4
        return checked_at is None or now >= checked_at + REFRESH_AFTER or now >= late

    def _load(self, model: PlatformModel, now: datetime) -> VerifiedCollateral | None:
        """The best that lies on disk and is in force; also learns which numbers have been seen."""
        best: VerifiedCollateral | None = None
        for version in self._archive.newest(model):
            try:
                verified = verify_version(model, version.collateral, roots=self._roots, at=version.arrived_at or now)
            except (QuoteUntrustedError, InputError) as exc:
                _log.warning("collateral: %s is skipped: %s", version.path, exc)
                continue
            self._learn(model, verified)
            if now in verified.period and (best is None or is_newer(verified, best)):
                best = verified
        with self._lock:
            self._slot(model).current = best
        return best

    def _start(self, model: PlatformModel) -> Future[VerifiedCollateral]:
        """The one flight for *model*: that which is under way, or a new one."""
        if not self._endpoints:
            raise CollateralUnavailableError(f"collateral for {model}: want it in the folder, got none in force")
        with self._lock:
            slot = self._slot(model)
            if slot.flight is not None:
                return slot.flight
            if self._is_closed:
                raise CollateralUnavailableError(f"collateral for {model}: the store is closed")
            if slot.failure is not None and slot.not_before is not None and self._clock() < slot.not_before:
                # A new one: an error that is raised again and again collects tracebacks.
                raise type(slot.failure)(str(slot.failure))
            if sum(other.flight is not None for other in self._slots.values()) >= _MOST_FLIGHTS:
                raise CollateralTransientError(f"collateral for {model}: too many platforms are being asked about")
            flight = slot.flight = Future()
        try:
            threading.Thread(target=self._fly, args=(model, flight), name=f"collateral {model}", daemon=True).start()
        except RuntimeError:  # The system gives no thread now; who asks next tries again.
            with self._lock:
                slot.flight = None
            flight.set_exception(CollateralTransientError(f"collateral for {model}: no thread to ask with"))
        return flight

    def _await(self, flight: Future[VerifiedCollateral]) -> VerifiedCollateral:
        if not self._waiting.acquire(blocking=False):
            raise CollateralTransientError("collateral: too many wait for it, try again later")
        try:
            return flight.result(self._patience)
        except FutureTimeoutError as exc:
            raise CollateralTransientError("collateral: no endpoint answered in time") from exc
        finally:
            self._waiting.release()

    def _fly(self, model: PlatformModel, flight: Future[VerifiedCollateral]) -> None:
        failure: CollateralUnavailableError = CollateralTransientError(f"collateral for {model}: the fetch broke off")
        landed = None
        try:
            landed = self._fetch(model)
        except CollateralUnavailableError as exc:
            _log.warning("%s", exc)
            failure = exc
        finally:
            # Also after a defect of ours, which the thread reports: nobody may wait for ever.
            self._land(model, flight, landed, failure)

    def _land(
        self,
        model: PlatformModel,
        flight: Future[VerifiedCollateral],
        landed: VerifiedCollateral | None,
        failure: CollateralUnavailableError,
    ) -> None:
        with self._lock:
            slot = self._slot(model)
            slot.flight = None
            if landed is not None:
                slot.current, slot.checked_at = landed, self._clock()
                slot.failure, slot.failures, slot.not_before = None, 0, None
            else:
                pause = min(_LAST_RETRY, _FIRST_RETRY * 2 ** min(slot.failures, 16))
                pause = _FATAL_RETRY if isinstance(failure, CollateralFatalError) else pause
                slot.failure, slot.failures, slot.not_before = failure, slot.failures + 1, self._clock() + pause
        if landed is not None:
            flight.set_result(landed)
        else:
            flight.set_exception(failure)

    def _fetch(self, model: PlatformModel) -> VerifiedCollateral:
        """From the first endpoint whose statements hold."""
        failures: list[CollateralUnavailableError] = []
        for endpoint in self._endpoints:
            try:
                return self._accept(model, endpoint.fetch(model))
            except (CollateralTransientError, CollateralFatalError) as exc:
                failures.append(exc)
            except (QuoteUntrustedError, InputError) as exc:
                failures.append(CollateralFatalError(f"{endpoint.url}: {exc}"))
        kind = CollateralTransientError if _any_transient(failures) else CollateralFatalError
        raise kind(f"collateral for {model}: " + "; ".join(str(failure) for failure in failures))

    def _accept(self, model: PlatformModel, collateral: Collateral) -> VerifiedCollateral:
        """Verify what arrived, and keep it unless what is there is newer."""
        now = self._clock()
        verified = verify_version(model, collateral, roots=self._roots, at=now)
        self._refuse_rollback(model, verified)
        with self._lock:
            current = self._slot(model).current
        if current is not None and now in current.period and not is_newer(verified, current):
            return current
        self._archive.keep(model, collateral, at=now)
        self._learn(model, verified)
        return verified

    def _refuse_rollback(self, model: PlatformModel, verified: VerifiedCollateral) -> None:
        for what, number in growing_numbers(model, verified).items():
            with self._lock:
                seen = self._seen.get(what, 0)
            if number < seen:
                raise CollateralFatalError(f"{what[0]}: want number {seen} or more, as seen before, got {number}")

    def _learn(self, model: PlatformModel, verified: VerifiedCollateral) -> None:
        with self._lock:
            for what, number in growing_numbers(model, verified).items():
                self._seen[what] = max(number, self._seen.get(what, 0))

    def _slot(self, model: PlatformModel) -> _Slot:
        """Call it under the lock."""
        slot = self._slots.get(model)
        if slot is None:
            if len(self._slots) >= MOST_MODELS:
                raise CollateralUnavailableError(f"collateral: want at most {MOST_MODELS} models of platform, got more")
            slot = self._slots[model] = _Slot()
        return slot


@contextmanager
def opened_collateral(
    folder: Path, *, urls: Sequence[str], roots: TrustedRoots, clock: Callable[[], datetime]
) -> Iterator[CollateralSource]:
    """What a service's settings ask for: a store in *folder* over the endpoints *urls*, or with none the plain folder.

    Store and connections are closed at the end.

    Raises:
        ConfigError: A URL is neither https nor of this machine.
        CollateralUnavailableError: The folder cannot be read.
    """
    if not urls:
        yield DirectoryCollateral(folder)
        return
    with ExitStack() as stack:
        endpoints = [stack.enter_context(PcsClient(url, roots)) for url in urls]
        store = CollateralStore(folder, roots=roots, endpoints=endpoints, clock=clock)
        yield stack.enter_context(closing(store))


def _any_transient(failures: Iterable[CollateralUnavailableError]) -> bool:
    return any(isinstance(failure, CollateralTransientError) for failure in failures)


def _require_rooted(quote: Quote, roots: TrustedRoots) -> None:
    """A stranger can name any platform; whoever wants us to ask about one shows certificates of the maker."""
    chain = parse_chain(quote.signature.pck_chain_pem, what="PCK chain", error=QuoteMalformedError)
    if len(chain) != 3 or roots.find(chain[2]) is None:
        raise QuoteUntrustedError(3, "PCK chain: want three certificates that end in a configured root of trust")
    require_issued(chain[1], chain[2], step=7)
    require_issued(chain[0], chain[1], step=7)
