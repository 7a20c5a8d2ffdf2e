"""The guest agent's client, against an agent at a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dstack.attestation.evidence import Evidence
from dstack.errors import AgentUnavailableError, InputError
from dstack.measurement.event_log import Event, RuntimeEvent, logged, serialise_event_log
from dstack.measurement.registers import ZERO_REGISTER
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.transport.agent import AgentClient
from dstack.transport.listener import Listener
from dstack.transport.server import CallContext, Method, prpc_app
from dstack.values import ReportData
from dstack.wire.guest import EmitEventRequest, GetQuoteRequest, GetQuoteResponse, InfoResponse

ASKED = ReportData(bytes(range(64)))
EVENT = RuntimeEvent("app-id", b"x" * 20)
EVENTS: tuple[Event, ...] = (logged(EVENT),)
REGISTERS = TdRegisters(*[ZERO_REGISTER] * 5)
PKI = SimulatedPki.generate(datetime(2027, 1, 15, tzinfo=UTC), seed=b"tests")


class Agent:
    """Quotes what it is asked, or what it was told to quote instead; keeps the events it is given."""

    def __init__(self, *, quotes: ReportData | None = None, log: str | None = None) -> None:
        self.quotes = quotes
        self.log = serialise_event_log(EVENTS) if log is None else log
        self.emitted: list[EmitEventRequest] = []

    def get_quote(self, request: GetQuoteRequest, _context: CallContext) -> GetQuoteResponse:
        """A quote over zero registers."""
        bound_to = self.quotes or ReportData(request.report_data)
        return GetQuoteResponse(make_quote(PKI, registers=REGISTERS, report_data=bound_to), self.log, bound_to, "{}")

    def emit_event(self, request: EmitEventRequest, _context: CallContext) -> None:
        """Refuses an empty name, as the real one does."""
        if not request.event:
            raise InputError("event name: want one")
        self.emitted.append(request)


@contextmanager
def serving(agent: Agent, folder: Path) -> Iterator[AgentClient]:
    """A client of *agent* at a socket in *folder*."""
    service = {
        "GetQuote": Method(GetQuoteRequest, agent.get_quote),
        "EmitEvent": Method(EmitEventRequest, agent.emit_event),
        "Info": Method(None, lambda _request, _context: InfoResponse(app_id=b"a" * 20, app_name="demo")),
    }
    path = folder / "agent.sock"
    with Listener(prpc_app(service, prefix="DstackGuest.", path=""), unix_socket=path).running():
        yield AgentClient(path)


def test_evidence_is_put_together(tmp_path: Path) -> None:
    """Quote, log, runtime events, report data and config arrive as one value."""
    with serving(Agent(), tmp_path) as client:
        evidence = client.evidence(ASKED)

    quote = make_quote(PKI, registers=REGISTERS, report_data=ASKED)
    assert evidence == Evidence(quote, EVENTS, (EVENT,), ASKED, "{}")


def test_quote_over_something_else_is_refused(tmp_path: Path) -> None:
    """An agent that quotes other report data than it was asked for has not answered."""
    other = ReportData(bytes(64))

    with serving(Agent(quotes=other), tmp_path) as client, pytest.raises(AgentUnavailableError, match="other report"):
        client.evidence(ASKED)


def test_malformed_log_is_refused(tmp_path: Path) -> None:
    """A log that cannot be read is no answer."""
    with serving(Agent(log="[{}]"), tmp_path) as client, pytest.raises(AgentUnavailableError, match="GetQuote: "):
        client.evidence(ASKED)


def test_event_is_emitted(tmp_path: Path) -> None:
    """Name and payload reach the agent."""
    agent = Agent()

    with serving(agent, tmp_path) as client:
        client.emit_event("rotation", b"\x01")

    assert agent.emitted == [EmitEventRequest("rotation", b"\x01")]


def test_refused_event_says_why(tmp_path: Path) -> None:
    """The agent's words reach the caller."""
    with serving(Agent(), tmp_path) as client, pytest.raises(AgentUnavailableError, match="event name: want one"):
        client.emit_event("", b"")


def test_info_is_typed(tmp_path: Path) -> None:
    """Info is a message, not a dict."""
    with serving(Agent(), tmp_path) as client:
        assert client.info() == InfoResponse(app_id=b"a" * 20, app_name="demo")


def test_no_agent_is_unavailable(tmp_path: Path) -> None:
    """A socket that is not there is named."""
    with pytest.raises(AgentUnavailableError, match=r"guest agent at .*absent\.sock: .*no answer"):
        AgentClient(tmp_path / "absent.sock").evidence(ASKED)
