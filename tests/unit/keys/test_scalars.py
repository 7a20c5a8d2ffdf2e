"""Private scalars and their ranges."""

import pytest

from dstack.errors import KeyMalformedError
from dstack.keys.scalars import (
    K256_ORDER,
    P256_ORDER,
    k256_from_scalar,
    k256_public_key,
    p256_from_scalar,
    require_scalar,
    require_secret,
)

GENERATOR = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"


@pytest.mark.parametrize("order", [P256_ORDER, K256_ORDER])
def test_the_range_of_a_scalar_is_one_to_order_minus_one(order: int) -> None:
    """The first and the last scalar of a curve are taken as they are."""
    first, last = (1).to_bytes(32, "big"), (order - 1).to_bytes(32, "big")

    assert (require_scalar(first, order, "key"), require_scalar(last, order, "key")) == (first, last)


@pytest.mark.parametrize("order", [P256_ORDER, K256_ORDER])
@pytest.mark.parametrize("beyond", [0, 1])
def test_a_scalar_outside_its_range_is_not_reduced(order: int, beyond: int) -> None:
    """Zero and the order itself are refused."""
    with pytest.raises(KeyMalformedError, match="a key: out of the range of its curve"):
        require_scalar((order * beyond).to_bytes(32, "big"), order, "a key")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_other_lengths_are_refused(size: int) -> None:
    """Every reader of key material names the wanted and the given length, and not the key."""
    for read in (p256_from_scalar, k256_from_scalar, lambda raw: require_secret(raw, "seed")):
        with pytest.raises(KeyMalformedError, match=f"want 32 bytes, got {size}$"):
            read(b"\x41" * size)


def test_the_curves_differ_by_function() -> None:
    """The scalar one stands for each curve's own generator."""
    one = (1).to_bytes(32, "big")

    assert k256_public_key(one).hex() == GENERATOR
    assert p256_from_scalar(one).curve.name == "secp256r1"
