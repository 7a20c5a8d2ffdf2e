"""docs/operators.md: its commands, run as they stand, in their order."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from string import Template

import httpx
import pytest
from eth_account import Account

from dstack.devnet.anvil import find_anvil
from dstack.devnet.programs import free_port

SECONDS = 60.0
WAIT = "sleep-48-hours"
PORTS = ("CHAIN_PORT", "PCCS_PORT", "KMS_PORT", "OLD_PORT", "NEW_PORT")
# The first of anvil's accounts, which it prints at every start: they have money on this chain and nowhere else.
MNEMONIC = "test test test test test test test test test test test junk"


class Page:
    """The page's commands in a folder of their own, with what they need by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = {name: str(free_port()) for name in PORTS}
        Account.enable_unaudited_hdwallet_features()
        for index, name in enumerate(("owner", "payer", "guardian")):
            account = Account.from_mnemonic(MNEMONIC, account_path=f"m/44'/60'/0'/0/{index}")
            (folder / f"{name}.key").touch(mode=0o600)
            (folder / f"{name}.key").write_text(account.key.hex())
            self.settings[name.upper()] = account.address
        (folder / "docker-compose.yaml").write_text("services: {kms: {image: kms:1}}\n")
        self.running: list[subprocess.Popen[bytes]] = []

    @property
    def chain(self) -> str:
        """Where the chain is asked."""
        return f"http://127.0.0.1:{self.settings['CHAIN_PORT']}"

    def write(self, name: str, template: str) -> None:
        """A file of the page, filled in."""
        self._learn_contracts()
        (self.folder / name).write_text(Template(template).substitute(self.settings))

    def run(self, command: str) -> str:
        """One line of the page; what it said. A line that ends in & goes on."""
        if command == WAIT:
            self._pass_48_hours()
            return ""
        arguments = self._arguments(command)
        if command.endswith("&"):
            self._start(arguments)
            return ""
        done = subprocess.run(
            arguments, cwd=self.folder, env=self._environment(), capture_output=True, text=True, timeout=SECONDS
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def stop(self) -> None:
        """End what goes on, the last first."""
        for process in reversed(self.running):
            process.terminate()
        for process in reversed(self.running):
            process.wait(10)

    def _arguments(self, command: str) -> list[str]:
        program, *arguments = shlex.split(Template(command.removesuffix("&")).substitute(self.settings))
        programs = {"dstack": [sys.executable, "-m", "dstack.cli"], "python": [sys.executable], "curl": ["curl"]}
        return [*(programs | {"anvil": [str(find_anvil())]})[program], *arguments]

    def _environment(self) -> dict[str, str]:
        # Where the project is not the one that is installed.
        tree = {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}
        return {"DSTACK_RPC_URL": self.chain, "PATH": "/usr/bin:/bin", "HOME": str(self.folder), **tree}

    def _start(self, arguments: list[str]) -> None:
        with (self.folder / "programs.log").open("ab") as log:
            self.running.append(
                subprocess.Popen(arguments, cwd=self.folder, env=self._environment(), stdout=log, stderr=log)
            )
        ready = {"kms": f"http://127.0.0.1:{self.settings['KMS_PORT']}/health", "anvil": self.chain}
        ready |= {
            f"{name}.toml": f"http://127.0.0.1:{self.settings[f'{name.upper()}_PORT']}" for name in ("old", "new")
        }
        for name, url in ready.items():
            if name in arguments or arguments[0].endswith(name):
                self._wait_for(url)
        if "cvm" in arguments:
            self._until(lambda: (self.folder / arguments[arguments.index("--socket") + 1]).exists())

    def _wait_for(self, url: str) -> None:
        def answers() -> bool:
            try:
                return httpx.get(url).status_code < 500
            except httpx.HTTPError:
                return False

        self._until(answers)

    def _until(self, condition: object) -> None:
        ends = time.monotonic() + SECONDS
        while not condition():  # type: ignore[operator]
            assert time.monotonic() < ends, (self.folder / "programs.log").read_text()[-3000:]
            time.sleep(0.1)

    def _pass_48_hours(self) -> None:
        for method, parameters in (("evm_increaseTime", [48 * 3600 + 1]), ("evm_mine", [])):
            question = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
            assert "error" not in httpx.post(self.chain, json=question).json()

    def _learn_contracts(self) -> None:
        deployment = json.loads((self.folder / "deployment.json").read_text())
        self.settings |= {"KMS_CONTRACT": deployment["kms_auth"], "OPERATOR": deployment["operator"]}

    def learn(self, command: str, said: str) -> None:
        """What a reader takes from an answer."""
        if "GetAttestationInfo" in command:
            info = json.loads(said)
            names = {"MR": "mr_aggregated", "DEVICE": "device_id", "IMAGE": "os_image_hash"}
            self.settings |= {name: info[member] for name, member in names.items()}
        if command.startswith("dstack govern app"):
            self.settings["APP"] = said.split()[1].rstrip(",")
        if "simulator image" in command:
            self.settings["IMAGE"] = json.loads(said)["os_image_hash"]
        if "replicator bootstrap" in command:
            self.settings["GENESIS"] = said.split()[-1]
        if command.startswith("dstack govern propose"):
            status = json.loads(self.run("dstack govern status --json"))
            self.settings["ID"] = status["pending"][-1]["id"]


@contextmanager
def page_in(folder: Path) -> Iterator[Page]:
    """A page whose programs end."""
    page = Page(folder)
    try:
        yield page
    finally:
        page.stop()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_commands_of_the_operators_page_run_as_written(tmp_path: Path, project_root: Path) -> None:
    """From an empty folder to a KMS that answers over TLS, every command succeeds; before the grant, it is refused."""
    text = (project_root / "docs" / "operators.md").read_text()
    blocks = blocks_of(text, "### From nothing to a running KMS", "### Running")
    with page_in(tmp_path) as page:
        said = ""
        for kind, content in blocks:
            if kind == "toml":
                page.write("kms.toml", content)
                continue
            for command in content.splitlines():
                if command == WAIT:
                    early = page.run(
                        'curl -s http://127.0.0.1:$KMS_PORT/prpc/Onboard.Bootstrap?json -d \'{"domain": "localhost"}\''
                    )
                    assert json.loads(early)["rule"] in ("OS_IMAGE", "AGGREGATED_MR", "KMS_DEVICE")
                said = page.run(command)
                page.learn(command, said)
                if command.endswith("/finish"):
                    page._until(lambda: _serves_tls(page))

    meta = json.loads(said)
    assert (meta["is_dev"], meta["chain_id"]) == (True, 31337)
    assert meta["k256_pubkey"] == meta["bootstrap_info"]["k256_pubkey"]


def blocks_of(text: str, first: str, behind: str) -> list[tuple[str, str]]:
    """Kind and content of the blocks between two headings."""
    section = text[text.index(f"\n{first}\n") : text.index(f"\n{behind}\n")]
    return re.findall(r"```(sh|toml)\n(.*?)```", section, re.DOTALL)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_commands_to_a_handover_run_as_written(tmp_path: Path, project_root: Path) -> None:
    """From an empty folder to a second node with the secure file; before the 48 hours nobody executes."""
    text = (project_root / "docs" / "operators.md").read_text()
    with page_in(tmp_path) as page:
        said = ""
        for kind, content in blocks_of(text, "### From nothing to a handover", "## Without TDX hardware"):
            if kind == "toml":
                page.write("old.toml", content)
                page.write("new.toml", content.replace("old", "new").replace("$OLD_PORT", "$NEW_PORT"))
                continue
            for command in content.splitlines():
                if command == WAIT:
                    with pytest.raises(AssertionError, match="Waiting"):
                        page.run("dstack govern execute $ID --key-file payer.key")
                said = page.run(command)
                page.learn(command, said)

    status = json.loads(said)
    assert (tmp_path / "new" / "file").read_bytes() == (tmp_path / "old" / "file").read_bytes()
    assert (status["receipts"], status["holds"]["custody"]["depth"]) == (1, 1)


def _serves_tls(page: Page) -> bool:
    try:
        return httpx.get(f"https://127.0.0.1:{page.settings['KMS_PORT']}/health", verify=False).text == "OK"
    except httpx.HTTPError:
        return False
