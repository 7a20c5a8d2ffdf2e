"""A local chain for demo and tests: anvil, a program from `node_modules` or PATH."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from eth_account import Account
from eth_account.signers.local import LocalAccount
from requests.exceptions import RequestException
from web3 import HTTPProvider, Web3
from web3.types import RPCEndpoint

from dstack.errors import ToolUnavailableError

BINARY = Path("node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil")
START_SECONDS = 15.0
STOP_SECONDS = 5.0
REQUEST_SECONDS = 30.0
_LISTENING = re.compile(r"^Listening on 127\.0\.0\.1:(\d+)$", re.MULTILINE)
_BANNER_SIZE = 64 * 1024
_POCKET_MONEY = 10**21  # wei: 1000 ether


@dataclass(slots=True)
class Anvil:
    """A running chain; leaving the `with` block ends it."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]
    rpc_url: str

    @classmethod
    def start(cls, port: int = 0, state: Path | None = None, *, slots_in_an_epoch: int = 32) -> Self:
        """Start a chain on loopback and wait until it answers.

        Args:
            port: 0 for one that is free.
            state: File to go on from and to keep the chain in; None forgets it.
            slots_in_an_epoch: `safe` is this many blocks behind the newest, `finalized` twice as many.

        Raises:
            ToolUnavailableError: There is no anvil, or it does not come up.
        """
        command: list[str] = [find_anvil(), "--host", "127.0.0.1", "--port", str(port), "--accounts", "1"]
        command += ["--slots-in-an-epoch", str(slots_in_an_epoch)]
        if state is not None:
            command += ["--state", str(state), "--preserve-historical-states"]
        output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop
        try:
            # In a session of its own, Ctrl-C in the terminal does not reach it before `stop` does.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as exc:
            output.close()
            raise ToolUnavailableError(f"anvil: cannot be started: {exc.strerror}") from exc
        chain = cls(process, output, "")
        try:
            chain.rpc_url = f"http://127.0.0.1:{chain._wait_for_port()}"
        except BaseException:
            chain.stop()
            raise
        return chain

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """End it: politely, so that it writes its state; then not."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.output.close()

    @property
    def web3(self) -> Web3:
        """For writing to this chain."""
        return Web3(self._provider())

    def warp(self, seconds: int) -> None:
        """Mine a block that is *seconds* after the newest.

        Raises:
            ToolUnavailableError: The chain does not answer.
        """
        newest = int(self._ask("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
        self._ask("evm_setNextBlockTimestamp", hex(newest + seconds))
        self.mine()

    def mine(self, blocks: int = 1) -> None:
        """Mine empty blocks.

        Raises:
            ToolUnavailableError: The chain does not answer.
        """
        self._ask("anvil_mine", hex(blocks))

    def snapshot(self) -> str:
        """Remember the present state; returns what `revert` wants.

        Raises:
            ToolUnavailableError: The chain does not answer.
        """
        return str(self._ask("evm_snapshot"))

    def revert(self, snapshot: str) -> None:
        """Go back to a remembered state; it is forgotten by that.

        Raises:
            ToolUnavailableError: The chain does not answer, or does not know it.
        """
        if self._ask("evm_revert", snapshot) is not True:
            raise ToolUnavailableError(f"anvil: does not know snapshot {snapshot}")

    def funded_account(self) -> LocalAccount:
        """A fresh key with money on this chain.

        Raises:
            ToolUnavailableError: The chain does not answer.
        """
        account: LocalAccount = Account.create()
        self._ask("anvil_setBalance", account.address, hex(_POCKET_MONEY))
        return account

    def _wait_for_port(self) -> int:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            # pread, because anvil writes at the position that a read would move.
            said = os.pread(self.output.fileno(), _BANNER_SIZE, 0).decode("utf-8", "replace")
            if found := _LISTENING.search(said):
                return int(found[1])
            if self.process.poll() is not None:
                raise ToolUnavailableError(f"anvil: ended early: {' '.join(said.split())[-300:]}")
            time.sleep(0.02)
        raise ToolUnavailableError(f"anvil: want it to listen within {START_SECONDS:.0f} s, got nothing")

    def _provider(self) -> HTTPProvider:
        return HTTPProvider(
            self.rpc_url, request_kwargs={"timeout": REQUEST_SECONDS}, exception_retry_configuration=None
        )

    def _ask(self, method: str, *parameters: object) -> Any:
        try:
            answer = self._provider().make_request(RPCEndpoint(method), list(parameters))
        except (RequestException, ValueError) as exc:
            raise ToolUnavailableError(f"anvil: {method}: {type(exc).__name__}") from exc
        if answer.get("error") is not None:
            raise ToolUnavailableError(f"anvil: {method}: {answer['error']}")
        return answer.get("result")


def find_anvil() -> str:
    """Path of anvil: beside the sources, under the working folder, or on PATH.

    Raises:
        ToolUnavailableError: There is none.
    """
    checkout = Path(__file__).resolve().parent.parent.parent
    for folder in (checkout, Path.cwd()):
        if (folder / BINARY).is_file():
            return str(folder / BINARY)
    found = shutil.which("anvil")
    if found is None:
        raise ToolUnavailableError("anvil: want it in node_modules or on PATH, got neither; run make setup")
    return found
