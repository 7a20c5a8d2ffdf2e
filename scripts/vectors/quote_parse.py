"""The kind `guest/quote_parse`: where the fields of captured quotes lie, and what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from dstack.attestation.certificates import p256_key, parse_chain, require_signature
from dstack.attestation.envelope import open_envelope
from dstack.attestation.qe import attestation_key, check_key_binding
from dstack.attestation.quote import Quote, TdReport, parse_quote
from dstack.attestation.quote_fields import quote_fields
from vectors.compare import Computation, Computed, Sections

_REGISTERS = tuple(name for name in TdReport.__dataclass_fields__ if name not in ("SIZE", "SIZE_TD15"))


def _parsed(content: bytes) -> Computed:
    """Everything that is said of one captured quote, whatever envelope it lies in."""
    raw = open_envelope(content).evidence.quote
    quote = parse_quote(raw)
    fields = {field.name: field for field in quote_fields(raw)}
    report = quote.signature.qe_report

    def number(name: str) -> int:
        return int.from_bytes(fields[name].raw, "little")

    padding = len(fields["padding"].raw) if "padding" in fields else 0
    said: dict[str, object] = {
        "version": quote.version,
        "att_key_type": number("attestation key type"),
        "tee_type": quote.tee_type,
        "qe_svn": fields["QE SVN"].raw.hex(),
        "pce_svn": fields["PCE SVN"].raw.hex(),
        "qe_vendor": quote.vendor.hex(),
        "user_data": quote.user_data.hex(),
        "sig_off": fields["signature data size"].offset,
        "sig_len": number("signature data size"),
        "total_len": len(raw),
        "trailing_len": padding,
        "qe_report_len": len(quote.signature.qe_report_raw),
        "qe_auth_len": len(quote.signature.qe_auth_data),
        "inner_cert_type": number("QE certification type"),
        "inner_cert_len": number("QE certification size"),
        "pck_chain_certs": len(parse_chain(quote.signature.pck_chain_pem, what="PCK chain")),
        "qe_mr_signer": report.mr_signer.hex(),
        "qe_mr_enclave": report.mr_enclave.hex(),
        "qe_isv_prod_id": report.isv_prod_id,
        "qe_isv_svn": report.isv_svn,
        "signature_checks": _checked(quote),
    }
    if "certification type" in fields:
        said |= {"outer_cert_type": number("certification type"), "outer_cert_len": number("certification size")}
    for name in _REGISTERS:
        value = getattr(quote.body, name, None)
        if value is not None:
            said[name] = value.hex()
    return said


def _checked(quote: Quote) -> list[str]:
    """The checks that held; one that does not raises."""
    signature = quote.signature
    key, leaf = attestation_key(signature.attestation_key), parse_chain(signature.pck_chain_pem, what="PCK chain")[0]
    require_signature(key, signature.body_signature, quote.signed, step=12, what="quote")
    pck = p256_key(leaf, step=9)
    require_signature(pck, signature.qe_report_signature, signature.qe_report_raw, step=9, what="QE report")
    check_key_binding(signature)
    bound = hashlib.sha256(signature.attestation_key + signature.qe_auth_data).digest()
    assert signature.qe_report.report_data[:32] == bound
    return ["attestation key over header+body", "PCK key over QE report", "QE report_data = sha256(ak||auth)"]


KINDS: Mapping[str, Sections] = {"guest/quote_parse": {"cases": (Computation(("@fixture",), _parsed),)}}
