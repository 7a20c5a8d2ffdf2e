"""Fetching collateral from Intel's PCS or a cache of it (PCCS). What comes is parsed, and not yet verified."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx
from cryptography import x509

from dstack.attestation.certificates import parse_chain
from dstack.attestation.collateral import Collateral
from dstack.attestation.pcs_answers import (
    CHAIN_HEADERS,
    MAX_ANSWER,
    QE_IDENTITY,
    TCB_INFO,
    parse_crl_answer,
    parse_issuer_chain,
    parse_signed_document,
)
from dstack.attestation.roots import TrustedRoots
from dstack.errors import (
    CollateralFatalError,
    CollateralMalformedError,
    CollateralTransientError,
    ConfigError,
    PeerUnavailableError,
)
from dstack.transport.collateral import PlatformModel
from dstack.web.client import bounded_body, bounded_client, until
from dstack.web.urls import is_this_machine, split_url

INTEL_PCS = "https://api.trustedservices.intel.com"
WAIT_SECONDS = 10.0
TOTAL_SECONDS = 30.0
_PATHS = ("/sgx/certification/v4", "/tdx/certification/v4")
_BUSY = frozenset({408, 425, 429})


@dataclass(frozen=True, slots=True)
class Answer:
    """A body of at most `MAX_ANSWER` bytes, and the headers."""

    body: bytes
    headers: httpx.Headers


def endpoint_url(url: str) -> str:
    """The base of an endpoint: https, or http to this machine; the paths of the API are cut off.

    Raises:
        ConfigError: Another kind of URL.
    """
    base = url.strip().rstrip("/")
    for path in _PATHS:
        base = base.removesuffix(path)
    _require_fetchable(base)
    return base


class PcsClient:
    """One endpoint, asked over connections of its own.

    Args:
        url: Its base, such as `https://api.trustedservices.intel.com`.
        roots: A root's own CRL is also looked for where its certificate says; only these certificates are followed.
        wait: Seconds that one request may take.
        total: Seconds that all requests for one platform may take together.
    """

    def __init__(
        self, url: str, roots: TrustedRoots, *, wait: float = WAIT_SECONDS, total: float = TOTAL_SECONDS
    ) -> None:
        self.url = endpoint_url(url)
        self._roots = roots
        self._wait = wait
        self._total = total
        self._http = bounded_client(seconds=wait, connections=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def fetch(self, model: PlatformModel) -> Collateral:
        """Everything about *model*, all from this endpoint.

        Raises:
            CollateralTransientError: It was down, slow, or too busy.
            CollateralFatalError: It knows no such platform, or answered something else.
        """
        try:
            return self._fetch(model, time.monotonic() + self._total)
        except CollateralMalformedError as exc:
            raise CollateralFatalError(f"{self.url}: {exc}") from exc

    def _fetch(self, model: PlatformModel, end: float) -> Collateral:
        tee = f"{self.url}/{model.tee}/certification/v4"
        tcb = self._get(f"{tee}/tcb?fmspc={model.fmspc.hex().upper()}", end)
        identity = self._get(f"{tee}/qe/identity", end)
        crl = self._get(f"{self.url}/sgx/certification/v4/pckcrl?ca={model.authority}&encoding=der", end)
        tcb_info, tcb_info_signature = parse_signed_document(tcb.body, TCB_INFO)
        qe_identity, qe_identity_signature = parse_signed_document(identity.body, QE_IDENTITY)
        pck_crl_issuer_chain = self._chain(crl, "PCK CRL")
        return Collateral(
            pck_crl_issuer_chain=pck_crl_issuer_chain,
            root_ca_crl=self._root_crl(pck_crl_issuer_chain, end),
            pck_crl=parse_crl_answer(crl.body),
            tcb_info_issuer_chain=self._chain(tcb, TCB_INFO),
            tcb_info=tcb_info,
            tcb_info_signature=tcb_info_signature,
            qe_identity_issuer_chain=self._chain(identity, QE_IDENTITY),
            qe_identity=qe_identity,
            qe_identity_signature=qe_identity_signature,
        )

    def _root_crl(self, issuer_chain: str, end: float) -> bytes:
        """From the endpoint if it has that page (caches have), else from where the trusted root's certificate says."""
        try:
            return parse_crl_answer(self._get(f"{self.url}/sgx/certification/v4/rootcacrl", end).body)
        except CollateralFatalError:
            for location in _crl_locations(issuer_chain, self._roots):
                return parse_crl_answer(self._get(location, end).body)
            raise

    def _chain(self, answer: Answer, what: str) -> str:
        for name in CHAIN_HEADERS[what]:
            if name in answer.headers:
                return parse_issuer_chain(answer.headers[name])
        raise CollateralMalformedError(f"answer with {what}: want the header {CHAIN_HEADERS[what][0]}, got none")

    def _get(self, url: str, end: float) -> Answer:
        ends = min(end, time.monotonic() + self._wait)
        try:
            with self._http.stream("GET", url, extensions=until(ends)) as response:
                if response.status_code != httpx.codes.OK:
                    raise _refusal(url, response.status_code)
                return Answer(bounded_body(response, MAX_ANSWER), response.headers)
        except PeerUnavailableError as exc:
            raise CollateralFatalError(f"{url}: {exc}") from exc
        except httpx.TimeoutException as exc:
            raise CollateralTransientError(f"{url}: no answer in time") from exc
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise CollateralTransientError(f"{url}: no answer: {exc or type(exc).__name__}") from exc


def _refusal(url: str, status: int) -> CollateralTransientError | CollateralFatalError:
    if status in _BUSY or status >= 500:
        return CollateralTransientError(f"{url}: status {status}, which says to ask later")
    known = ": it knows no such platform" if status == 404 and "/tcb?" in url else ""
    return CollateralFatalError(f"{url}: status {status}{known}")


def _crl_locations(issuer_chain: str, roots: TrustedRoots) -> list[str]:
    """Where the last certificate of *issuer_chain* says that its CRL is, if it is a root of trust."""
    root = parse_chain(issuer_chain.encode(), what="PCK CRL issuer chain")[-1]
    if roots.find(root) is None:
        return []
    try:
        points = root.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except x509.ExtensionNotFound:
        return []
    names = [name.value for point in points for name in point.full_name or [] if isinstance(name.value, str)]
    return [name for name in names if name.startswith("https://")]


def _require_fetchable(url: str) -> None:
    try:
        parts = split_url(url)
    except ValueError as exc:
        raise ConfigError(f"collateral endpoint: {exc}, got {url[:200]!r}") from exc
    if parts.username or parts.query or parts.fragment:
        raise ConfigError("collateral endpoint: want scheme, host and path, and no user, query or fragment")
    if parts.scheme != "https" and not is_this_machine(parts.hostname or ""):
        raise ConfigError(f"collateral endpoint: want https, or http to this machine, got {url[:200]!r}")
