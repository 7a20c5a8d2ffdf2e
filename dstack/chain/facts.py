"""What is published besides decisions: read now and then, told at once, with its age."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from dstack.errors import ChainUnavailableError
from dstack.policy.decision import BlockRef

# How old facts may be before they are asked for anew.
FACTS_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What a KmsAuth says of itself, as it was last read.

    Attributes:
        kms_contract: Its address; empty where an auth server names none.
        chain_id: The chain.
        gateway_app_id: The gateway that apps are told to trust; empty when none was named.
        app_implementation: What the factory makes apps of; the zero address when there is none.
        block: The state it was read in.
        read_at: `time.monotonic` of the reading.
        rpc_url: Scheme, host and port of the endpoint that an auth server asks; empty where none is named.
    """

    kms_contract: str
    chain_id: int
    gateway_app_id: str
    app_implementation: str
    block: BlockRef
    read_at: float
    rpc_url: str = ""

    @property
    def age_seconds(self) -> float:
        """How long ago it was read."""
        return time.monotonic() - self.read_at


class KeptFacts:
    """The last facts. Reading them anew happens beside whoever asks for them."""

    def __init__(self, read: Callable[[], Facts]) -> None:
        """Take what reads them; nothing is read yet."""
        self._read = read
        self._facts: Facts | None = None
        self._reading = threading.Lock()
        self._is_closed = False

    def close(self) -> None:
        """Wait for a reading that is under way; none begins after that."""
        if not self._is_closed:
            self._is_closed = True
            self._reading.acquire()

    def read(self) -> Facts:
        """Read them now.

        Raises:
            ChainUnavailableError: They could not be read; what was known stays.
        """
        self._facts = self._read()
        return self._facts

    def recent(self) -> Facts | None:
        """What was last read, at once; None before anything was. What is old is read anew meanwhile."""
        facts = self._facts
        if (facts is None or facts.age_seconds > FACTS_SECONDS) and self._reading.acquire(blocking=False):
            try:
                threading.Thread(target=self._read_beside, name="facts", daemon=True).start()
            except RuntimeError:  # The system gives no thread now; who asks next tries again.
                self._reading.release()
        return facts

    def _read_beside(self) -> None:
        try:
            self.read()
        except ChainUnavailableError:
            pass  # The facts keep their age, which whoever asks for them sees.
        finally:
            self._reading.release()
