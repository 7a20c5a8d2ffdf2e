"""The guest agent beside a replicator: at `dstack.sock`, or the legacy one at `tappd.sock` (guest.md 4.1, 4.4)."""

from __future__ import annotations

from pathlib import Path

from dstack.attestation.evidence import Evidence
from dstack.attestation.quote import parse_quote
from dstack.errors import AgentUnavailableError, InputError, RefusedError, UnavailableError
from dstack.measurement.event_log import parse_event_log, runtime_events
from dstack.transport.agent import AgentClient
from dstack.transport.client import PrpcClient
from dstack.values import ReportData, bytes_from_hex
from dstack.wire.guest import InfoResponse, TdxQuoteRequest, TdxQuoteResponse
from replicator.peers import QuoteProvider

_FOLDERS = ("/var/run", "/run", "/var/run/dstack", "/run/dstack")
_SECONDS = 10.0
SOCKETS = tuple(Path(folder, name) for name in ("dstack.sock", "tappd.sock") for folder in _FOLDERS)


class TappdClient:
    """Asks the legacy guest agent for evidence.

    Args:
        socket_path: Where it listens.
    """

    def __init__(self, socket_path: Path) -> None:
        self._socket = socket_path

    def evidence(self, report_data: ReportData) -> Evidence:
        """Evidence about this CVM that carries *report_data*.

        Raises:
            AgentUnavailableError: The agent did not answer, gave no quote, or a quote over something else.
        """
        request = TdxQuoteRequest(report_data=report_data, hash_algorithm="raw")
        try:
            with PrpcClient("http://tappd/prpc", unix_socket=self._socket, timeout=_SECONDS) as client:
                answer = client.call("Tappd.TdxQuote", request, TdxQuoteResponse)
                config = client.call("Tappd.Info", None, InfoResponse).vm_config
            raw = bytes_from_hex(answer.quote, what="quote")
            quote, events = parse_quote(raw), parse_event_log(answer.event_log)
        except (InputError, RefusedError, UnavailableError) as exc:
            raise AgentUnavailableError(f"legacy guest agent at {self._socket}: {exc}") from exc
        if quote.report_data != report_data:
            raise AgentUnavailableError(f"legacy guest agent at {self._socket}: got a quote over other report data")
        return Evidence(raw, events, runtime_events(events), report_data, config)


def find_agent(socket: Path | None) -> QuoteProvider:
    """The agent at *socket*, or at the first of `SOCKETS` that is there; `tappd` in its name means the legacy one.

    Raises:
        AgentUnavailableError: There is none.
    """
    found = socket or next((path for path in SOCKETS if path.is_socket()), None)
    if found is None:
        raise AgentUnavailableError(f"guest agent: want one at {SOCKETS[0]}, or another known place, got none")
    return TappdClient(found) if "tappd" in found.name else AgentClient(found)
