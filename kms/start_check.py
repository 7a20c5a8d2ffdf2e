"""The check of a start: that the settings lead to the contracts they mean. Before it was made nothing is decided.

A chain that says nothing stops no start: whoever asks is told that the chain could not be asked, and the check is made
again until it answers. A chain that is not the one wanted ends the program, at the start or whenever that shows.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dstack.chain.facts import Facts
from dstack.errors import ChainElsewhereError, ChainUnavailableError, DstackError, UnavailableError
from dstack.policy import BootInfo, Decision
from kms.authorities import Authority

PAUSE_SECONDS = 2.0
_REMIND_SECONDS = 60.0
# How long the end of a program waits for the question that is being asked.
_END_SECONDS = 5.0

_log = logging.getLogger("kms")


class CheckedAuthority:
    """An authority that decides nothing before it was checked; a `ChainAuthority`.

    Whoever asks before that waits for nothing: the check is made beside them, by `awaited`.
    """

    def __init__(self, authority: Authority, *, chain_id: int | None = None) -> None:
        """Take who decides; nobody is asked yet.

        Args:
            authority: Decides.
            chain_id: The chain it must ask; None for any.
        """
        self._authority = authority
        self._chain_id = chain_id
        self._is_checked = False
        self._missing = "not asked yet"
        self._wrong: DstackError | None = None

    @property
    def is_checked(self) -> bool:
        """Whether it was; from then on it decides."""
        return self._is_checked

    def check(self) -> bool:
        """Ask now; whether it answered.

        Raises:
            ConfigError: The settings lead elsewhere.
            ChainElsewhereError: So do the endpoints.
        """
        try:
            self._authority.check(chain_id=self._chain_id)
        except ChainElsewhereError:
            raise
        except UnavailableError as exc:
            self._missing = str(exc)
            return False
        self._is_checked = True
        _log.info("the chain answers as the settings want it")
        return True

    @contextmanager
    def awaited(self, end: Callable[[], None]) -> Iterator[None]:
        """For the length of a `with` block check again every few seconds, until it answers.

        Args:
            end: Called when it answers and is not what the settings want; must let the block come to its end.

        Raises:
            DstackError: It did so; after the block.
        """
        if self._is_checked:
            yield
            return
        _log.warning("the chain cannot be asked: %s; nothing is released before it answers", self._missing)
        over = threading.Event()
        thread = threading.Thread(target=self._await, args=(over, end), name="start-check", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(_END_SECONDS)
        if self._wrong is not None:
            raise self._wrong

    def _await(self, over: threading.Event, end: Callable[[], None]) -> None:
        remind_at = time.monotonic() + _REMIND_SECONDS
        while not over.wait(PAUSE_SECONDS) and not self._is_over(end):
            if time.monotonic() >= remind_at:
                remind_at = time.monotonic() + _REMIND_SECONDS
                _log.warning("the chain still cannot be asked: %s", self._missing)

    def _is_over(self, end: Callable[[], None]) -> bool:
        try:
            return self.check()
        except DstackError as exc:
            self._wrong = exc
            self._missing = str(exc)
            _log.error("%s; this program ends", exc)
            end()
            return True
        except Exception:  # noqa: BLE001 - a defect is told, and is no answer of the chain
            _log.exception("check of the start: no answer")
            return False

    def authorize_app(self, boot: BootInfo) -> Decision:
        """As the authority, once it was checked.

        Raises:
            ChainUnavailableError: It could not be asked; neither yes nor no.
        """
        self._require_checked()
        return self._authority.authorize_app(boot)

    def authorize_kms(self, boot: BootInfo) -> Decision:
        """As the authority, once it was checked.

        Raises:
            ChainUnavailableError: It could not be asked; neither yes nor no.
        """
        self._require_checked()
        return self._authority.authorize_kms(boot)

    def recent_facts(self) -> Facts | None:
        """What was last read; None before it was checked, as it may be of another chain."""
        return self._authority.recent_facts() if self._is_checked else None

    def _require_checked(self) -> None:
        if not self._is_checked:
            raise ChainUnavailableError(f"no answer since the start: {self._missing}")
