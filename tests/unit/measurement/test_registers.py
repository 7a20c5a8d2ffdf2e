"""A register is SHA-384 of itself and a digest, again and again."""

from hashlib import sha384

import pytest

from dstack.errors import EventLogMalformedError
from dstack.measurement.registers import ZERO_REGISTER, extend, replay
from dstack.values import Register


def test_nothing_replays_to_zero() -> None:
    """A register that nothing was extended into is 48 zero bytes."""
    assert replay(()) == ZERO_REGISTER == Register(bytes(48))


def test_order_counts() -> None:
    """Two digests in the other order give another register."""
    first, second = b"a" * 48, b"b" * 48

    register = replay((first, second))

    assert register == sha384(sha384(bytes(48) + first).digest() + second).digest()
    assert register != replay((second, first))


@pytest.mark.parametrize("size", [0, 20, 32, 47])
def test_a_short_digest_is_padded_on_the_right(size: int) -> None:
    """Bytes that are missing count as zeros behind the digest."""
    assert extend(ZERO_REGISTER, b"x" * size) == sha384(bytes(48) + b"x" * size + bytes(48 - size)).digest()


def test_a_long_digest_is_refused() -> None:
    """49 bytes are never cut."""
    with pytest.raises(EventLogMalformedError, match="want at most 48 bytes, got 49"):
        extend(ZERO_REGISTER, bytes(49))
