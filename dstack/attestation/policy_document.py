"""A verification policy as a JSON document, as an auditor writes it.

    {"relaxations": [{"accept_status": "SWHardeningNeeded", "until": "2027-06-30T00:00:00Z",
                      "advisory_ids": ["INTEL-SA-00615"]},
                     {"allow_td_attribute": "PERFMON", "until": "2027-06-30T00:00:00Z"},
                     {"allow_legacy_module": true, "until": "2027-06-30T00:00:00Z"}],
     "min_evaluation_number": 17, "min_root_crl_number": 1, "min_pck_crl_number": 1,
     "refused_advisory_ids": [], "xfam": "0x602e7", "mr_seams": [], "mr_enclaves": []}

Every member may be left out; then the strict default holds.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

from dstack.attestation.tcb import TcbStatus
from dstack.attestation.verification_policy import (
    SELECTABLE_TD_ATTRIBUTES,
    AcceptStatus,
    AllowLegacyModule,
    AllowTdAttribute,
    Relaxation,
    VerificationPolicy,
)
from dstack.errors import ConfigError
from dstack.measurement.strict_json import Members, parse_json
from dstack.values import Digest32, Register, SizedBytes

MAX_POLICY = 1024 * 1024
_MAX_U32, _MAX_U64 = 2**32 - 1, 2**64 - 1
_MAX_CRL_NUMBER = 2**159 - 1
_KINDS = ("accept_status", "allow_td_attribute", "allow_legacy_module")
_MEMBERS = frozenset(
    {
        "relaxations",
        "min_evaluation_number",
        "min_root_crl_number",
        "min_pck_crl_number",
        "refused_advisory_ids",
        "xfam",
        "mr_seams",
        "mr_enclaves",
    }
)
_SizedT = TypeVar("_SizedT", bound=SizedBytes)


def parse_policy(raw: bytes) -> VerificationPolicy:
    """Read a policy document.

    Raises:
        ConfigError: It is not JSON, a member is unknown or of another type, or a relaxation has no end.
    """
    document = Members.of(
        parse_json(raw, what="policy", limit=MAX_POLICY, error=ConfigError), what="policy", error=ConfigError
    )
    document.refuse_others(_MEMBERS)
    return VerificationPolicy(
        relaxations=tuple(map(_relaxation, _objects(document, "relaxations"))),
        min_evaluation_number=document.integer("min_evaluation_number", 0, maximum=_MAX_U32),
        min_root_crl_number=document.integer("min_root_crl_number", 0, maximum=_MAX_CRL_NUMBER),
        min_pck_crl_number=document.integer("min_pck_crl_number", 0, maximum=_MAX_CRL_NUMBER),
        refused_advisory_ids=frozenset(document.texts("refused_advisory_ids")),
        xfam=_mask(document) if document.has("xfam") else None,
        mr_seams=_digests(document, "mr_seams", Register) if document.has("mr_seams") else None,
        mr_enclaves=_digests(document, "mr_enclaves", Digest32),
    )


def parse_moment(text: str, *, what: str) -> datetime:
    """Read a time with its zone, such as 2027-01-15T08:00:00Z, and give it in UTC.

    Raises:
        ConfigError: It is another text.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise ConfigError(f"{what}: want a time such as 2027-01-15T08:00:00Z, got {text[:40]!r}") from exc
    if moment.tzinfo is None:
        raise ConfigError(f"{what}: want a time zone, such as the Z in 2027-01-15T08:00:00Z, got {text[:40]!r}")
    try:
        return moment.astimezone(UTC)
    except OverflowError as exc:
        raise ConfigError(f"{what}: want a time in the years 1 to 9999 of UTC, got {text[:40]!r}") from exc


def parse_status(text: str) -> TcbStatus:
    """Read a TCB status in Intel's spelling.

    Raises:
        ConfigError: Intel has no such status.
    """
    try:
        return TcbStatus(text)
    except ValueError as exc:
        wanted = ", ".join(status.value for status in TcbStatus)
        raise ConfigError(f"TCB status: want one of {wanted}, got {text[:40]!r}") from exc


def _relaxation(members: Members) -> Relaxation:
    named = [kind for kind in _KINDS if kind in members.values]
    if len(named) != 1:
        raise ConfigError(f"{members.what}: want exactly one of {', '.join(_KINDS)}, got {len(named)} of them")
    known = {named[0], "until", *(("advisory_ids",) if named[0] == "accept_status" else ())}
    members.refuse_others(frozenset(known))
    if not members.has("until"):
        raise ConfigError(f"{members.what}: want the time at which it ends in 'until', got none")
    until = parse_moment(members.text("until"), what=f"{members.what}: until")
    return _MAKERS[named[0]](members, until)


def _accept_status(members: Members, until: datetime) -> AcceptStatus:
    advisory_ids = frozenset(members.texts("advisory_ids")) if "advisory_ids" in members.values else None
    return AcceptStatus(parse_status(members.text("accept_status")), until, advisory_ids)


def _allow_td_attribute(members: Members, until: datetime) -> AllowTdAttribute:
    name = members.text("allow_td_attribute")
    if name not in SELECTABLE_TD_ATTRIBUTES:
        raise ConfigError(f"{members.what}: want one of {', '.join(SELECTABLE_TD_ATTRIBUTES)}, got {name[:40]!r}")
    return AllowTdAttribute(SELECTABLE_TD_ATTRIBUTES[name], until)


def _allow_legacy_module(members: Members, until: datetime) -> AllowLegacyModule:
    if not members.flag("allow_legacy_module"):
        raise ConfigError(f"{members.what}: allow_legacy_module: want true, or no such relaxation")
    return AllowLegacyModule(until)


_MAKERS: dict[str, Callable[[Members, datetime], Relaxation]] = {
    "accept_status": _accept_status,
    "allow_td_attribute": _allow_td_attribute,
    "allow_legacy_module": _allow_legacy_module,
}


def _objects(document: Members, name: str) -> tuple[Members, ...]:
    items = document.values.get(name, [])
    if not isinstance(items, list):
        raise ConfigError(f"policy: {name}: want an array")
    return tuple(Members.of(item, what=f"{name}[{at}]", error=ConfigError) for at, item in enumerate(items))


def _mask(document: Members) -> int:
    text = document.text("xfam")
    try:
        mask = int(text, 16)
    except ValueError as exc:
        raise ConfigError(f"policy: xfam: want a number in hexadecimal, got {text[:40]!r}") from exc
    if not 0 <= mask <= _MAX_U64:
        raise ConfigError("policy: xfam: want 64 bits")
    return mask


def _digests(document: Members, name: str, kind: type[_SizedT]) -> frozenset[_SizedT]:
    return frozenset(kind.from_hex(text) for text in document.texts(name))
