"""Owners with keys in files, a chain, and `dstack govern` as they type it."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

from eth_account.signers.local import LocalAccount
from web3 import Web3

from dstack.chain.safe import ARTIFACTS, deploy_safe
from dstack.cli.main import main
from dstack.devnet.anvil import Anvil
from dstack.measurement.compose import app_compose_from_docker_compose

IMAGE = "5a" * 32
OTHER_IMAGE = "6b" * 32
DEVICE = "de" * 32


@dataclass(frozen=True)
class Run:
    """What one command said."""

    code: int
    out: str
    err: str

    @property
    def facts(self) -> dict[str, Any]:
        """The answer of a command with --json that went well."""
        assert self.code == 0, self
        answer: dict[str, Any] = json.loads(self.out)
        return answer

    @property
    def refusal(self) -> str:
        """The sentence of a command that did not."""
        assert self.code in (1, 2, 3), self
        return str(json.loads(self.out)["error"]) if self.out.startswith("{") else self.err.strip().splitlines()[-1]


@dataclass
class GovernWorld:
    """One chain, one folder; `keys` by name, each in a file NAME.key."""

    chain: Anvil
    folder: Path
    project_root: Path
    keys: dict[str, LocalAccount] = field(default_factory=dict)

    @property
    def w3(self) -> Web3:
        """The chain, for looking."""
        return self.chain.web3

    def account(self, name: str) -> str:
        """The address of a key, which is made when it is first named."""
        if name not in self.keys:
            self.keys[name] = self.chain.funded_account()
            self.write(f"{name}.key", self.keys[name].key.hex())
        return str(self.keys[name].address)

    def write(self, name: str, content: str | bytes) -> str:
        """A file that only its owner may read; returns its path."""
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def path(self, name: str) -> str:
        """Where a file of this name is or shall be."""
        return str(self.folder / name)

    def key(self, name: str) -> tuple[str, str]:
        """The option that names a key's file."""
        self.account(name)
        return "--key-file", self.path(f"{name}.key")

    def safe(self, *owners: str, threshold: int = 2) -> str:
        """A Safe of the named owners; an owner may be an address."""
        addresses = [Web3.to_checksum_address(o if o.startswith("0x") else self.account(o)) for o in owners]
        self.account("payer")
        artifacts = self.project_root / ARTIFACTS
        made = deploy_safe(self.w3, self.keys["payer"], addresses, threshold=threshold, artifacts=artifacts)
        return made.address

    def deploy(self, owner: str, guardian: str | None = None) -> dict[str, Any]:
        """The contracts, with the deployment file in the folder."""
        accounts = ("--owner", owner, "--guardian", guardian or self.account("guardian"))
        chain_id = ("--chain-id", str(self.w3.eth.chain_id))
        return self.govern("deploy", *chain_id, *accounts, *self.key("payer")).facts

    def govern(self, command: str, *arguments: str, environment: Mapping[str, str] | None = None) -> Run:
        """Run `dstack govern COMMAND` in JSON."""
        return self.run("govern", command, *arguments, "--json", environment=environment)

    def run(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Run:
        """Run `dstack` in this process, as the program would."""
        settings = {
            "DSTACK_RPC_URL": self.chain.rpc_url,
            "DSTACK_DEPLOYMENT": self.path("deployment.json"),
            **(environment or {}),
        }
        out, err = io.StringIO(), io.StringIO()
        code = 0
        with (
            contextlib.chdir(self.folder),
            patch.object(sys, "argv", ["dstack", *arguments]),
            patch.object(sys, "stdin", io.StringIO()),
            patch.dict("os.environ", settings),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                main()
            except SystemExit as exc:
                code = int(exc.code or 0)
        return Run(code, out.getvalue(), err.getvalue())

    def app(self) -> str:
        """An app that the operator owns."""
        return str(self.govern("app", "--device", DEVICE, *self.key("payer")).facts["app"])

    def compose(self, name: str, image: str = "nginx") -> str:
        """An app-compose.json."""
        docker = f"services: {{web: {{image: {image}}}}}\n".encode()
        return self.write(name, app_compose_from_docker_compose(docker, name="web"))

    def submit(self, name: str, *signers: str) -> Run:
        """The named owners sign the file in turn, and it is submitted."""
        for signer in signers:
            signed = self.govern("sign", self.path(name), "--yes", *self.key(signer))
            assert signed.code == 0, signed
        return self.govern("submit", self.path(name), *self.key("payer"))

    def warp(self, **duration: int) -> None:
        """Let time pass."""
        self.chain.warp(int(timedelta(**duration).total_seconds()))
