"""Evidence in and out of X.509 certificates (kms.md 4.1 and 4.3)."""

from __future__ import annotations

import zlib
from functools import lru_cache

from cryptography import x509

from dstack.attestation.certificates import parse_certificate
from dstack.attestation.evidence import Evidence, parse_evidence, serialise_evidence, strip_evidence
from dstack.attestation.quote import parse_body
from dstack.attestation.report_data import ratls_report_data
from dstack.errors import EvidenceMalformedError
from dstack.keys.certs import OID_ATTESTATION, OID_EVENT_LOG, OID_TDX_QUOTE, Extension, certificate_payload, spki_der
from dstack.measurement.event_log import parse_event_log, runtime_events, serialise_event_log
from dstack.values import ReportData

_GZIP_MARK = b"ELGZv1"
_GZIP_HEADER = 16
_MAX_INFLATED = 16 * 1024
_KNOWN_CERTIFICATES = 32


def evidence_extensions(evidence: Evidence) -> list[Extension]:
    """The extension that carries *evidence*, stripped to what a certificate has room for.

    Raises:
        EvidenceMalformedError: An event is of version 2.
    """
    return [(OID_ATTESTATION, serialise_evidence(strip_evidence(evidence)))]


def classic_extensions(evidence: Evidence) -> list[Extension]:
    """The two extensions that readers up to 0.5.5 know: the quote, and its whole log as JSON."""
    return [(OID_TDX_QUOTE, evidence.quote), (OID_EVENT_LOG, serialise_event_log(evidence.event_log).encode())]


def evidence_from_certificate(certificate_der: bytes) -> Evidence | None:
    """Take the evidence out of a certificate; None if it carries none.

    Verifies nothing: neither the quote, nor that it is bound to the certificate's key.

    Raises:
        EvidenceMalformedError: Not a certificate, a quote without its log, or evidence that cannot be read.
        InputError: A part of the evidence is not of its form.
    """
    return _evidence_of(_parsed(certificate_der))


# Each request on a connection comes with the connection's certificate.
@lru_cache(maxsize=_KNOWN_CERTIFICATES)
def bound_evidence(certificate_der: bytes) -> tuple[Evidence, ReportData] | None:
    """The evidence in a certificate, and what it must be bound to if it speaks for its key; None without evidence.

    Raises:
        EvidenceMalformedError: As `evidence_from_certificate`.
        InputError: As `evidence_from_certificate`.
    """
    certificate = _parsed(certificate_der)
    evidence = _evidence_of(certificate)
    return None if evidence is None else (evidence, ratls_report_data(spki_der(certificate)))


def certificate_form(certificate_der: bytes) -> bool:
    """Whether its evidence is in the unified extension, .8, rather than in the classic pair.

    Raises:
        EvidenceMalformedError: Not a certificate.
    """
    return certificate_payload(_parsed(certificate_der), OID_ATTESTATION) is not None


def certificate_report_data(certificate_der: bytes) -> ReportData:
    """What evidence must be bound to if it speaks for this certificate's key.

    Raises:
        EvidenceMalformedError: Not a certificate.
    """
    return ratls_report_data(spki_der(_parsed(certificate_der)))


def _parsed(certificate_der: bytes) -> x509.Certificate:
    return parse_certificate(certificate_der, what="RA-TLS certificate", error=EvidenceMalformedError)


def _evidence_of(certificate: x509.Certificate) -> Evidence | None:
    blob = certificate_payload(certificate, OID_ATTESTATION)
    return _classic_evidence(certificate) if blob is None else parse_evidence(blob)


def _classic_evidence(certificate: x509.Certificate) -> Evidence | None:
    """The form of dstack 0.5.5 and older: a quote and a JSON log, each in its own extension."""
    quote, log = certificate_payload(certificate, OID_TDX_QUOTE), certificate_payload(certificate, OID_EVENT_LOG)
    if quote is None:
        return None
    if log is None:
        raise EvidenceMalformedError("RA-TLS certificate: it carries a quote and no event log")
    events = parse_event_log(_inflated(log))
    return Evidence(quote, events, runtime_events(events), parse_body(quote).report_data, "")


def _inflated(log: bytes) -> bytes:
    """The log itself: upstream's library also defines a compressed form, which nobody is known to write."""
    if not log.startswith(_GZIP_MARK):
        return log
    inflater = zlib.decompressobj(wbits=zlib.MAX_WBITS | _GZIP_HEADER)
    try:
        inflated = inflater.decompress(log.removeprefix(_GZIP_MARK), _MAX_INFLATED + 1)
    except zlib.error as exc:
        raise EvidenceMalformedError(f"event log: want gzip after {_GZIP_MARK!r}, got something else") from exc
    if len(inflated) > _MAX_INFLATED or not inflater.eof or inflater.unused_data:
        raise EvidenceMalformedError(f"event log: want one whole gzip stream of at most {_MAX_INFLATED} bytes inflated")
    return inflated
