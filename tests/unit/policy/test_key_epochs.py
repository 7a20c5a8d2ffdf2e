"""Key epochs: the current one, and the one before for a while."""

from datetime import UTC, datetime, timedelta

import pytest

from dstack.errors import RefusedError
from dstack.policy.key_epochs import FIRST_EPOCH, KeyEpochs

UNTIL = datetime(2027, 1, 15, tzinfo=UTC)
BEFORE = UNTIL - timedelta(seconds=1)


def test_two_epochs_are_served_until_the_window_closes() -> None:
    """In the second that it closes, only the current one is."""
    epochs = KeyEpochs(3, UNTIL)

    assert (epochs.previous(BEFORE), epochs.previous(UNTIL)) == (2, None)
    assert [epochs.require_served(epoch, BEFORE) for epoch in (2, 3)] == [2, 3]
    with pytest.raises(RefusedError, match="want 3, or 2 in its window, got 2"):
        epochs.require_served(2, UNTIL)


@pytest.mark.parametrize("epoch", [0, 1, 4, 2**64 - 1])
def test_no_other_epoch_is_served(epoch: int) -> None:
    """Neither older ones nor those to come, even inside the window."""
    with pytest.raises(RefusedError, match=f"got {epoch}"):
        KeyEpochs(3, UNTIL).require_served(epoch, BEFORE)


def test_first_epoch_has_none_before_it() -> None:
    """Whatever the window says."""
    assert FIRST_EPOCH.previous(BEFORE) is None
    assert KeyEpochs(0, UNTIL).previous(BEFORE) is None
