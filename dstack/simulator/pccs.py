"""NOT PRODUCTION. A server in the shape of Intel's PCS and of its caches, for one simulated platform.

Statements are made anew for every answer, as good as the clock says. `Behaviour` makes it slow, busy or dishonest; it
may be changed while the server runs, and every change counts from the next request on.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from urllib.parse import quote

from fastapi import FastAPI, Request, Response

from dstack.attestation.collateral import Collateral
from dstack.attestation.pcs_answers import CHAIN_HEADERS, QE_IDENTITY, TCB_INFO
from dstack.simulator.pki import SimulatedPki, raw_signature
from dstack.simulator.statements import EVALUATION_NUMBER

CrlForm = Literal["der", "pem", "hex"]


@dataclass(slots=True)
class Behaviour:
    """How the server answers.

    Attributes:
        delay: Seconds before each answer.
        status: Of each answer; other than 200 there is nothing in it.
        evaluation_number: Of both documents.
        crl_number: Of both CRLs.
        wrong_signer: Sign the documents with the platform's key instead of the TCB signer's.
        impostor: Another maker, whose statements come instead.
        crl_form: How CRLs are wrapped.
        has_root_crl: Whether it has that page; Intel's own service has not.
        padding: Blanks behind each answer.
        requests: Paths asked for, with their queries, in order.
    """

    delay: float = 0.0
    status: int = 200
    evaluation_number: int = EVALUATION_NUMBER
    crl_number: int = 1
    wrong_signer: bool = False
    impostor: SimulatedPki | None = None
    crl_form: CrlForm = "der"
    has_root_crl: bool = True
    padding: int = 0
    requests: list[str] = field(default_factory=list)


def pccs_app(pki: SimulatedPki, clock: Callable[[], datetime], behaviour: Behaviour) -> FastAPI:
    """The application; mount it at the root of a listener on loopback."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def collateral() -> Collateral:
        maker = behaviour.impostor or pki
        return maker.collateral(clock(), evaluation_number=behaviour.evaluation_number, crl_number=behaviour.crl_number)

    async def answer(request: Request) -> Response:
        behaviour.requests.append(request.url.path + (f"?{request.url.query}" if request.url.query else ""))
        await asyncio.sleep(behaviour.delay)
        if behaviour.status != 200:
            return Response(status_code=behaviour.status)
        return _answer(request, collateral(), pki, behaviour)

    app.add_api_route("/{path:path}", answer, methods=["GET"], response_model=None)
    return app


def _answer(request: Request, collateral: Collateral, pki: SimulatedPki, behaviour: Behaviour) -> Response:
    path, query = request.url.path, request.query_params
    own = pki.platform.fmspc.hex().upper()
    if path == "/tdx/certification/v4/tcb" and query.get("fmspc", "").upper() == own:
        chain, document = collateral.tcb_info_issuer_chain, collateral.tcb_info
        return _document(TCB_INFO, document, _signature(document, collateral.tcb_info_signature, pki, behaviour), chain)
    if path == "/tdx/certification/v4/qe/identity":
        chain, document = collateral.qe_identity_issuer_chain, collateral.qe_identity
        return _document(
            QE_IDENTITY, document, _signature(document, collateral.qe_identity_signature, pki, behaviour), chain
        )
    if path == "/sgx/certification/v4/pckcrl" and query.get("ca") == "platform":
        return _crl(collateral.pck_crl, behaviour, collateral.pck_crl_issuer_chain)
    if path == "/sgx/certification/v4/rootcacrl" and behaviour.has_root_crl:
        return _crl(collateral.root_ca_crl, behaviour, None)
    return Response(status_code=404)


def _signature(document: str, honest: bytes, pki: SimulatedPki, behaviour: Behaviour) -> bytes:
    return raw_signature(pki.keys.pck, document.encode()) if behaviour.wrong_signer else honest


def _document(name: str, document: str, signature: bytes, chain: str) -> Response:
    body = f'{{"{name}":{document},"signature":"{signature.hex()}"}}'
    return Response(body, media_type="application/json", headers=_chain_header(name, chain))


def _crl(der: bytes, behaviour: Behaviour, chain: str | None) -> Response:
    pem = b"-----BEGIN X509 CRL-----\n" + b64encode(der) + b"\n-----END X509 CRL-----\n"
    body = {"der": der, "pem": pem, "hex": der.hex().encode()}[behaviour.crl_form]
    headers = {} if chain is None else _chain_header("PCK CRL", chain)
    return Response(body + b" " * behaviour.padding, media_type="application/pkix-crl", headers=headers)


def _chain_header(name: str, chain: str) -> dict[str, str]:
    return {CHAIN_HEADERS[name][0]: quote(chain)}
