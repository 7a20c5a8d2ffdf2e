"""A verification policy as a document; every relaxation ends."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from dstack.attestation.policy_document import parse_policy
from dstack.attestation.tcb import TcbStatus
from dstack.attestation.verification_policy import (
    STRICT,
    AcceptStatus,
    AllowLegacyModule,
    AllowTdAttribute,
    VerificationPolicy,
    accept_statuses,
)
from dstack.errors import ConfigError, InputError
from dstack.values import Digest32, Register

END = datetime(2027, 6, 30, tzinfo=UTC)
UNTIL = "2027-06-30T00:00:00Z"


def parse(**members: object) -> VerificationPolicy:
    """The policy of a document with these members."""
    return parse_policy(json.dumps(members).encode())


def test_an_empty_document_is_strict():
    """What is left out is as strict as can be."""
    assert parse() == STRICT


def test_every_member_is_read():
    """Each relaxation comes with its end, each tightening with its value."""
    assert parse(
        relaxations=[
            {"accept_status": "SWHardeningNeeded", "until": UNTIL, "advisory_ids": ["INTEL-SA-00615"]},
            {"accept_status": "OutOfDate", "until": UNTIL},
            {"allow_td_attribute": "PERFMON", "until": UNTIL},
            {"allow_legacy_module": True, "until": UNTIL},
        ],
        min_evaluation_number=17,
        min_root_crl_number=2,
        min_pck_crl_number=3,
        refused_advisory_ids=["INTEL-SA-00837"],
        xfam="0x602e7",
        mr_seams=["01" * 48],
        mr_enclaves=["02" * 32],
    ) == VerificationPolicy(
        relaxations=(
            AcceptStatus(TcbStatus.SW_HARDENING_NEEDED, END, frozenset({"INTEL-SA-00615"})),
            AcceptStatus(TcbStatus.OUT_OF_DATE, END),
            AllowTdAttribute(63, END),
            AllowLegacyModule(END),
        ),
        min_evaluation_number=17,
        min_root_crl_number=2,
        min_pck_crl_number=3,
        refused_advisory_ids=frozenset({"INTEL-SA-00837"}),
        xfam=0x602E7,
        mr_seams=frozenset({Register(b"\x01" * 48)}),
        mr_enclaves=frozenset({Digest32(b"\x02" * 32)}),
    )


@pytest.mark.parametrize(
    ("relaxation", "message"),
    [
        ({"accept_status": "OutOfDate"}, "want the time at which it ends in 'until', got none"),
        ({"allow_legacy_module": True}, "want the time at which it ends"),
        ({"accept_status": "OutOfDate", "until": "2027-06-30T00:00:00"}, "want a time zone"),
        ({"accept_status": "OutOfDate", "until": "never"}, "want a time such as"),
        ({"accept_status": "Revoked", "until": UNTIL}, "Revoked cannot be accepted"),
        ({"accept_status": "Fine", "until": UNTIL}, "want one of UpToDate"),
        ({"allow_td_attribute": "DEBUG", "until": UNTIL}, "want one of PKS, KL, PERFMON, got 'DEBUG'"),
        ({"allow_legacy_module": False, "until": UNTIL}, "want true, or no such relaxation"),
        ({"accept_status": "OutOfDate", "allow_legacy_module": True, "until": UNTIL}, "exactly one of"),
        ({"until": UNTIL}, "exactly one of .* got 0 of them"),
        ({"allow_legacy_module": True, "until": UNTIL, "advisory_ids": []}, "unknown member 'advisory_ids'"),
    ],
)
def test_a_relaxation_without_an_end_or_subject_is_refused(relaxation, message):
    """Nothing is relaxed for ever, and nothing that must never be."""
    with pytest.raises(ConfigError, match=message):
        parse(relaxations=[relaxation])


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"accepted": []}, "unknown member 'accepted'"),
        ({"relaxations": {}}, "relaxations: want an array"),
        ({"min_evaluation_number": -1}, "want 0 to 4294967295, got -1"),
        ({"xfam": "all"}, "want a number in hexadecimal, got 'all'"),
        ({"xfam": "1" + "0" * 16}, "want 64 bits"),
        ({"mr_seams": ["00"]}, "Register: want 48 bytes, got 1"),
    ],
)
def test_other_documents_are_refused(members, message):
    """An unknown member or another type is refused: a policy that is not understood is no policy."""
    with pytest.raises(InputError, match=message):
        parse(**members)


def test_relaxations_end():
    """A relaxation applies before its end and not from then on."""
    policy = VerificationPolicy(relaxations=(AllowLegacyModule(END),))

    assert policy.applying(datetime(2027, 6, 29, 23, 59, 59, tzinfo=UTC)) == policy.relaxations
    assert policy.applying(END) == ()


def test_settings_need_an_end_for_each_status():
    """A list of statuses needs an end, unless it is UpToDate alone."""
    assert accept_statuses([TcbStatus.UP_TO_DATE], None) == ()
    assert accept_statuses([TcbStatus.OUT_OF_DATE], END) == (AcceptStatus(TcbStatus.OUT_OF_DATE, END),)
    with pytest.raises(
        ConfigError,
        match="accepting OutOfDate: want the time at which that ends in accepted_tcb_statuses_until, got none",
    ):
        accept_statuses([TcbStatus.OUT_OF_DATE], None)
    with pytest.raises(ConfigError, match="with its zone"):
        AllowLegacyModule(datetime(2027, 6, 30))
