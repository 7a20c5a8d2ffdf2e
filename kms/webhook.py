"""The other source of decisions: an auth server over HTTP, as upstream's KMS asks it (kms.md 6.3).

It is believed, so it must be reached by TLS or on this machine. Its decisions name no block. What it does not answer,
or answers out of form, is neither yes nor no.
"""

from __future__ import annotations

import time
from typing import Any

from dstack.chain.bounded_http import BoundedClient, EndpointError, Reply
from dstack.chain.client import parse_address, printable
from dstack.chain.facts import Facts, KeptFacts
from dstack.chain.single_flight import SingleFlight
from dstack.errors import ChainUnavailableError, ConfigError, MessageMalformedError
from dstack.measurement.strict_json import parse_json
from dstack.policy import BlockRef, BootInfo, Decision, Granted, Rule, decide
from dstack.policy.decision import NO_BLOCK
from dstack.web.urls import shown_url
from kms.settings_form import trusted_url

SECONDS = 5.0
ANSWER_LIMIT = 64 << 10
CONNECTIONS = 32
USER_AGENT = "dstack-kms/0.1.0"


class WebhookAuthority:
    """Asks one auth server. No decision is kept; who asks the same thing at the same time shares one answer."""

    def __init__(self, url: str, *, seconds: float = SECONDS) -> None:
        """Take the settings; nothing is asked yet.

        Args:
            url: https, or http to this machine.
            seconds: How long one question may take.

        Raises:
            ConfigError: The URL is another.
        """
        try:
            self._url = trusted_url(url)
        except ValueError as exc:
            raise ConfigError(f"core.auth_api.webhook.url: {exc}") from exc
        self._name = f"auth server {shown_url(url)}"
        self._client = BoundedClient(
            seconds=seconds, limit=ANSWER_LIMIT, connections=CONNECTIONS, user_agent=USER_AGENT
        )
        self._flights = SingleFlight()
        self._facts = KeptFacts(self._read_facts)

    def close(self) -> None:
        """Close its connections, after what is being asked beside its callers."""
        self._facts.close()
        self._client.close()

    def check(self, *, chain_id: int | None = None) -> BlockRef:
        """Establish that an auth server answers; for the start of a program.

        Raises:
            ConfigError: It answers for another chain.
            ChainUnavailableError: It could not be asked.
        """
        facts = self._facts.read()
        if chain_id is not None and facts.chain_id != chain_id:
            raise ConfigError(f"chain id: want {chain_id}, got {facts.chain_id}")
        return NO_BLOCK

    def authorize_app(self, boot: BootInfo) -> Decision:
        """Ask whether the machine *boot* may have its app's keys.

        Raises:
            ChainUnavailableError: It could not be asked; neither yes nor no.
        """
        return self._authorize("app", boot)

    def authorize_kms(self, boot: BootInfo) -> Decision:
        """Ask whether the machine *boot* may have the root keys.

        Raises:
            ChainUnavailableError: It could not be asked; neither yes nor no.
        """
        return self._authorize("kms", boot)

    def recent_facts(self) -> Facts | None:
        """What was last read, at once; None before anything was. What is old is asked for anew meanwhile."""
        return self._facts.recent()

    def _authorize(self, kind: str, boot: BootInfo) -> Decision:
        body = boot.to_json().encode()
        url = f"{self._url.rstrip('/')}/bootAuth/{kind}"
        answer = self._flights.run((kind, body), lambda: self._ask("POST", url, body))
        is_allowed, gateway, reason = (
            self._member(answer, name, of) for name, of in (("isAllowed", bool), ("gatewayAppId", str), ("reason", str))
        )
        # Upstream's servers may give a reason for a yes too; `isAllowed` alone decides.
        if is_allowed:
            return Granted(NO_BLOCK, gateway_app_id=printable(gateway))
        return decide(False, printable(reason), NO_BLOCK, {Rule.OTHER: f"{kind} {boot.app_id.hex()}"})

    def _read_facts(self) -> Facts:
        answer = self._ask("GET", self._url, None)
        self._member(answer, "status", str)
        contract = self._member(answer, "kmsContractAddr", str)
        return Facts(
            _address(contract),
            self._member(answer, "chainId", int),
            printable(self._member(answer, "gatewayAppId", str)),
            _address(self._member(answer, "appImplementation", str)),
            NO_BLOCK,
            time.monotonic(),
            _rpc_url(answer.get("ethRpcUrl")),
        )

    def _ask(self, method: str, url: str, body: bytes | None) -> dict[str, Any]:
        try:
            return _object(self._client.exchange(method, url, body))
        except EndpointError as exc:
            raise ChainUnavailableError(f"{self._name}: {exc}") from exc

    def _member(self, answer: dict[str, Any], name: str, kind: type) -> Any:
        value = answer.get(name)
        if type(value) is not kind:
            raise ChainUnavailableError(f"{self._name}: {name}: want {kind.__name__}, got {type(value).__name__}")
        return value


def _object(reply: Reply) -> dict[str, Any]:
    if not 200 <= reply.status < 300:
        raise EndpointError("refusing", f"answers with HTTP status {reply.status}")
    try:
        # A member that came twice would be read as its first by one reader and as its last by another.
        answer = parse_json(reply.body, what="answer", limit=ANSWER_LIMIT, error=MessageMalformedError)
    except MessageMalformedError as exc:
        raise EndpointError("malformed", "want JSON, got something else") from exc
    if not isinstance(answer, dict):
        raise EndpointError("malformed", f"want a JSON object, got {type(answer).__name__}")
    return answer


def _rpc_url(told: object) -> str:
    """As it is published: scheme, host and port. Some servers name none, which is not wrong."""
    try:
        return printable(shown_url(told)) if isinstance(told, str) else ""
    except ValueError:
        return ""


def _address(text: str) -> str:
    """As it is published; an address out of form is none."""
    try:
        return parse_address(text, what="address")
    except ConfigError:
        return ""
