"""A chain endpoint that says whatever a test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from dstack.policy import BootInfo
from dstack.values import AppId, ComposeHash, DeviceId, Digest32, OsImageHash
from tests.http_answers import answering

Endpoint = Callable[[bytes], str]

BOOT = BootInfo(
    app_id=AppId(b"\xa1" * 20),
    compose_hash=ComposeHash(b"\xc0" * 32),
    instance_id=None,
    device_id=DeviceId(b"\xde" * 32),
    mr_aggregated=Digest32(b"\x3a" * 32),
    mr_system=Digest32(b"\x5e" * 32),
    os_image_hash=OsImageHash(b"\x05" * 32),
    tcb_status="UpToDate",
)
"""A machine that the contracts are asked about."""


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """Starts an endpoint that answers every request with these bytes; gives its URL."""
    with ExitStack() as stack:
        yield lambda answer: stack.enter_context(answering(lambda *_: (200, answer))).url
