"""What has ended is forgotten though nobody asks: secrets outlive their use by seconds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from replicator.node import Replicator

FORGET_SECONDS = 15.0
_END_SECONDS = 5.0
_log = logging.getLogger(__name__)


@contextmanager
def forgetting(node: Replicator, *, every: float = FORGET_SECONDS) -> Iterator[None]:
    """For the length of a `with` block have *node* forget what has ended, every so many seconds."""
    end = threading.Event()
    thread = threading.Thread(target=_forget, args=(node, end, every), name="forgetting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(_END_SECONDS)


def _forget(node: Replicator, end: threading.Event, every: float) -> None:
    while not end.wait(every):
        try:
            node.forget_ended()
        except Exception:  # noqa: BLE001 - a disk that refuses, or a defect, is told, and is not the end of it
            _log.exception("what has ended cannot be forgotten now; tried again in %.0f s", every)
