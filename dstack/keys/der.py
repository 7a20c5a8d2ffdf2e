"""The OCTET STRING of DER (X.690, 8.7 and 10.1): what dstack's X.509 extensions put around their payload."""

from __future__ import annotations

from dstack.errors import EvidenceMalformedError

_OCTET_STRING = 0x04
_LONG_FORM = 0x80

# Four length bytes are 4 GiB; no certificate comes near.
_LONGEST_LENGTH = 4


def octet_string(payload: bytes) -> bytes:
    """The DER form of *payload*."""
    size = len(payload)
    if size < _LONG_FORM:
        return bytes((_OCTET_STRING, size)) + payload
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((_OCTET_STRING, _LONG_FORM | len(length))) + length + payload


def read_octet_string(raw: bytes) -> bytes:
    """The payload of the one OCTET STRING that *raw* is.

    Raises:
        EvidenceMalformedError: *raw* is anything else, or not in the one form that DER allows.
    """
    if len(raw) < 2 or raw[0] != _OCTET_STRING:
        raise EvidenceMalformedError("extension: want an OCTET STRING")
    width = raw[1] & ~_LONG_FORM if raw[1] & _LONG_FORM else 0
    payload = raw[2 + width :]
    if width > _LONGEST_LENGTH or octet_string(payload) != raw:
        raise EvidenceMalformedError("extension: want one OCTET STRING in DER, its length equal to its content")
    return payload
