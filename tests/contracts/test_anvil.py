"""The local chain as a program: it comes up, keeps its state, and ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from dstack.devnet import anvil
from dstack.devnet.anvil import Anvil
from dstack.errors import ToolUnavailableError


def test_the_chain_goes_on_where_it_was_ended(tmp_path: Path) -> None:
    """With a state file, blocks and balances outlive the program."""
    state = tmp_path / "chain.json"
    with Anvil.start(state=state) as first:
        account = first.funded_account().address
        first.mine(3)

    with Anvil.start(state=state) as second:
        again = second.web3.eth.block_number, second.web3.eth.get_balance(account)

    assert again == (3, 10**21)


def test_the_program_ends_with_the_block() -> None:
    """Leaving the `with` block ends it also when the block fails."""
    with pytest.raises(RuntimeError, match="inside"), Anvil.start() as chain:  # noqa: PT012
        process = chain.process
        raise RuntimeError("inside")

    assert process.poll() is not None


def test_time_moves_by_exactly_what_was_asked() -> None:
    """A warp makes a block that many seconds after the newest."""
    with Anvil.start() as chain:
        before = chain.web3.eth.get_block("latest")["timestamp"]
        chain.warp(172_800)

        assert chain.web3.eth.get_block("latest")["timestamp"] == before + 172_800


def test_a_snapshot_is_good_for_one_return() -> None:
    """Going back twice to one snapshot is refused instead of ignored."""
    with Anvil.start() as chain:
        snapshot = chain.snapshot()
        chain.mine(2)
        chain.revert(snapshot)

        assert chain.web3.eth.block_number == 0
        with pytest.raises(ToolUnavailableError, match="does not know snapshot"):
            chain.revert(snapshot)


def test_a_port_in_use_is_reported_at_once() -> None:
    """The error carries anvil's own words."""
    with Anvil.start() as first:
        port = int(first.rpc_url.rsplit(":", 1)[1])

        with pytest.raises(ToolUnavailableError, match=r"anvil: ended early: .*in use"):
            Anvil.start(port)


def test_a_missing_anvil_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the program the error says how to get it."""
    monkeypatch.setattr(anvil, "BINARY", Path("nowhere"))
    monkeypatch.setenv("PATH", "")

    with pytest.raises(ToolUnavailableError, match="want it in node_modules or on PATH, got neither; run make setup"):
        Anvil.start()


def test_a_chain_that_is_gone_is_unavailable() -> None:
    """After its end every question fails as such."""
    with Anvil.start() as chain:
        pass

    with pytest.raises(ToolUnavailableError, match="anvil: anvil_mine: ConnectionError"):
        chain.mine()
