"""The guest agent of this CVM, at its unix socket: where a service gets evidence about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from dstack.attestation.evidence import Evidence
from dstack.attestation.quote import parse_quote
from dstack.errors import AgentUnavailableError, InputError, RefusedError, UnavailableError
from dstack.measurement.event_log import parse_event_log, runtime_events
from dstack.transport.client import PrpcClient
from dstack.values import ReportData
from dstack.wire.guest import EmitEventRequest, GetQuoteRequest, GetQuoteResponse, InfoResponse

Message = TypeVar("Message")
_SECONDS = 10.0
"""That a call may take."""


class AgentClient:
    """Asks the guest agent. Connects anew for every call, so the agent may restart.

    Args:
        socket_path: Where it listens.
    """

    def __init__(self, socket_path: str | Path) -> None:
        self._socket = Path(socket_path)

    def evidence(self, report_data: ReportData) -> Evidence:
        """Evidence about this CVM that carries *report_data*.

        Raises:
            AgentUnavailableError: The agent did not answer, gave no quote, or a quote over something else.
        """
        answer = self._call("GetQuote", GetQuoteRequest(report_data=report_data), GetQuoteResponse)
        try:
            quote = parse_quote(answer.quote)
            events = parse_event_log(answer.event_log)
        except InputError as exc:
            raise AgentUnavailableError(f"guest agent at {self._socket}: GetQuote: {exc}") from exc
        if quote.report_data != report_data:
            raise AgentUnavailableError(f"guest agent at {self._socket}: GetQuote: got a quote over other report data")
        return Evidence(answer.quote, events, runtime_events(events), report_data, answer.vm_config)

    def emit_event(self, name: str, payload: bytes) -> None:
        """Extend RTMR3 by an event of the application.

        Raises:
            AgentUnavailableError: The agent did not answer, or refused.
        """
        with self._client() as client:
            try:
                client.call_empty("EmitEvent", EmitEventRequest(event=name, payload=payload))
            except (UnavailableError, RefusedError) as exc:
                raise AgentUnavailableError(f"guest agent at {self._socket}: {exc}") from exc

    def info(self) -> InfoResponse:
        """What the agent says about this CVM; unverified.

        Raises:
            AgentUnavailableError: The agent did not answer, or refused.
        """
        return self._call("Info", None, InfoResponse)

    def _call(self, method: str, request: Any, answer: type[Message]) -> Message:
        with self._client() as client:
            try:
                return client.call(method, request, answer)
            except (UnavailableError, RefusedError) as exc:
                raise AgentUnavailableError(f"guest agent at {self._socket}: {exc}") from exc

    def _client(self) -> PrpcClient:
        return PrpcClient("http://dstack", unix_socket=self._socket, timeout=_SECONDS)
