"""The guest agents beside a replicator: today's, and the legacy one at tappd.sock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request

from dstack.errors import AgentUnavailableError
from dstack.measurement.event_log import serialise_event_log
from dstack.transport.agent import AgentClient
from dstack.transport.listener import Listener
from dstack.values import ReportData
from replicator.guest_agents import TappdClient, find_agent
from tests.worlds import NOW, Machine, Site

WANTED = ReportData(b"wanted".ljust(64, b"\0"))


@contextmanager
def tappd(machine: Machine, socket: Path, **changes: Any) -> Iterator[None]:
    """A legacy agent of *machine* as guest.md 4.4 describes it; *changes* replace members of its answers."""
    app = FastAPI()

    @app.post("/prpc/Tappd.TdxQuote")
    async def tdx_quote(request: Request) -> dict[str, Any]:
        asked = await request.json()
        assert asked["hash_algorithm"] == "raw"
        evidence = machine.evidence(ReportData(bytes.fromhex(asked["report_data"])))
        answer = {"quote": "0x" + evidence.quote.hex(), "event_log": serialise_event_log(evidence.event_log)}
        return {**answer, "hash_algorithm": "raw", "prefix": "", **changes}

    @app.post("/prpc/Tappd.Info")
    async def info() -> dict[str, Any]:
        return {"app_id": "00" * 20, "vm_config": machine.platform.config, "tcb_info": "{}"}

    with Listener(app, unix_socket=socket).running():
        yield


def test_the_legacy_agent_gives_evidence_that_verifies(tmp_path: Path, site: Site) -> None:
    """A quote with the `0x` of some builds, its log and the VM config make evidence like that of today's agent."""
    machine = site.machine(tmp_path / "machine")
    with tappd(machine, tmp_path / "tappd.sock"):
        evidence = TappdClient(tmp_path / "tappd.sock").evidence(WANTED)

    appraisal = site.verifier.appraise(evidence, expected=WANTED, at=NOW)
    assert appraisal.compose_hash == machine.booted.app_compose.compose_hash
    assert appraisal.instance_id == machine.booted.instance_id


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"quote": "0xzz"}, "want hexadecimal"),
        ({"quote": "00"}, "legacy guest agent"),
        ({"event_log": "{"}, "legacy guest agent"),
    ],
)
def test_rubbish_of_the_legacy_agent_is_could_not_ask(
    tmp_path: Path, site: Site, changes: dict[str, Any], match: str
) -> None:
    """An agent that answers something else gives no evidence."""
    machine = site.machine(tmp_path / "machine")
    with (
        tappd(machine, tmp_path / "tappd.sock", **changes),
        pytest.raises(AgentUnavailableError, match=match),
    ):
        TappdClient(tmp_path / "tappd.sock").evidence(WANTED)


def test_a_quote_over_something_else_is_refused(tmp_path: Path, site: Site) -> None:
    """A captured quote in place of a fresh one is noticed."""
    machine = site.machine(tmp_path / "machine")
    captured = machine.evidence(ReportData(b"captured".ljust(64, b"\0"))).quote.hex()
    with (
        tappd(machine, tmp_path / "tappd.sock", quote=captured),
        pytest.raises(AgentUnavailableError, match="other report data"),
    ):
        TappdClient(tmp_path / "tappd.sock").evidence(WANTED)


def test_the_name_of_the_socket_says_which_protocol(tmp_path: Path) -> None:
    """`tappd` in the name means the legacy agent; no socket anywhere is could not ask."""
    assert isinstance(find_agent(tmp_path / "tappd.sock"), TappdClient)
    assert isinstance(find_agent(tmp_path / "dstack.sock"), AgentClient)


def test_json_is_what_the_legacy_agent_reads(tmp_path: Path) -> None:
    """The request is JSON with the 64 bytes in hexadecimal, as clients of that time sent it."""
    seen: list[dict[str, Any]] = []
    app = FastAPI()

    @app.post("/prpc/Tappd.TdxQuote")
    async def tdx_quote(request: Request) -> dict[str, Any]:
        seen.append(json.loads(await request.body()))
        return {}

    with (
        Listener(app, unix_socket=tmp_path / "tappd.sock").running(),
        pytest.raises(AgentUnavailableError, match="legacy guest agent"),
    ):
        TappdClient(tmp_path / "tappd.sock").evidence(WANTED)

    assert seen == [{"report_data": WANTED.hex(), "hash_algorithm": "raw", "prefix": ""}]
