"""What was checked is remembered by content, for its period, within bounds."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest

from dstack.attestation.content_cache import ContentCache, Period, content_key
from dstack.attestation.roots import TrustedRoots, simulated_root
from dstack.attestation.tcb import LEVEL_STATUSES, TcbStatus
from dstack.attestation.verification_policy import AcceptStatus, VerificationPolicy
from dstack.attestation.verify import verify_quote
from dstack.errors import ConfigError, DstackError, QuoteUntrustedError
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.quoting import make_quote
from dstack.simulator.statements import VALIDITY
from dstack.values import ReportData


def test_an_entry_is_given_within_its_period_only(at):
    """An entry is not given before its start; at its end it is forgotten."""
    cache = ContentCache()
    cache.put(b"key", "value", Period(at, at + timedelta(days=1), "something"))

    assert cache.get(b"key", str, at - timedelta(seconds=1)) is None
    assert cache.get(b"key", str, at) == "value"
    assert cache.get(b"key", int, at) is None
    assert cache.get(b"key", str, at + timedelta(days=1)) is None
    assert len(cache) == 0


def test_the_least_recently_used_entry_makes_room(at):
    """A full cache drops what was not asked for longest, and never holds more than it may."""
    cache, period = ContentCache(2), Period(at, at + timedelta(days=1), "something")
    cache.put(b"a", "a", period)
    cache.put(b"b", "b", period)
    cache.get(b"a", str, at)
    cache.put(b"c", "c", period)

    assert [cache.get(key, str, at) for key in (b"a", b"b", b"c")] == ["a", None, "c"]
    with pytest.raises(ConfigError, match="want room for at least one entry, got 0"):
        ContentCache(0)


def test_two_lists_of_contents_share_no_key():
    """Where one content ends and the next begins is part of the key."""
    assert content_key(b"ab", b"c") != content_key(b"a", b"bc") != content_key(b"abc")


def test_the_shorter_period_names_the_end(at):
    """Of two periods the overlap is kept, with the name of what ends first."""
    long = Period(at, at + timedelta(days=2), "long")
    short = Period(at - timedelta(days=1), at + timedelta(days=1), "short")

    assert long.within(short) == short.within(long) == Period(at, at + timedelta(days=1), "short")


def test_a_last_second_is_over_when_the_next_begins(at):
    """A period through a second holds in all of it; one through the last second there is, until that."""
    period = Period.through(at, at, "second")
    never = Period.through(at, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), "never")

    assert period == Period(at, at + timedelta(seconds=1), "second")
    assert never.end.replace(microsecond=0) == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    assert never.end.microsecond == 999_999


def test_remembered_checks_change_no_answer(pki, roots, registers, at):
    """With a cache every quote of a platform gets the answer that it gets without, refusals included."""
    cache, collateral = ContentCache(), pki.collateral()
    for number in range(3):
        raw = make_quote(pki, registers=registers, report_data=ReportData(bytes([number]) * 64))
        plain = verify_quote(raw, collateral, roots=roots, at=at)
        assert verify_quote(raw, collateral, roots=roots, at=at, cache=cache) == plain
        for offset in (200, 640, 900, 1160, 1300, 3000):
            changed = bytearray(raw)
            changed[offset] ^= 1
            with pytest.raises(DstackError, match=r".") as without:
                verify_quote(bytes(changed), collateral, roots=roots, at=at)
            with pytest.raises(DstackError, match=r".") as remembered:
                verify_quote(bytes(changed), collateral, roots=roots, at=at, cache=cache)
            assert str(remembered.value) == str(without.value)
    assert len(cache) == 3


def test_nothing_is_remembered_past_its_end(pki, roots, registers, at):
    """What was good until its end is refused from then on, cache or not, and so is what has not begun."""
    cache, raw = ContentCache(), make_quote(pki, registers=registers, report_data=ReportData(bytes(64)))
    verify_quote(raw, pki.collateral(), roots=roots, at=at, cache=cache)

    for moment in (at + VALIDITY, at - timedelta(seconds=1)):
        with pytest.raises(QuoteUntrustedError, match=r"step 4: CRL of .* not at"):
            verify_quote(raw, pki.collateral(), roots=roots, at=moment, cache=cache)


def test_other_roots_and_collateral_are_checked_anew(pki, roots, registers, at):
    """A cache that knows a platform says nothing under another root, or with collateral that revokes it."""
    cache, raw = ContentCache(), make_quote(pki, registers=registers, report_data=ReportData(bytes(64)))
    good = pki.collateral()
    verify_quote(raw, good, roots=roots, at=at, cache=cache)
    revoked = pki.collateral(revoked=(pki.pck.serial_number,))
    stranger = TrustedRoots((simulated_root(SimulatedPki.generate(at, seed=b"another").root_der),))

    with pytest.raises(QuoteUntrustedError, match=r"step 3: root .* is not a configured root"):
        verify_quote(raw, good, roots=stranger, at=at, cache=cache)
    with pytest.raises(QuoteUntrustedError, match=r"step 7: .*revoked"):
        verify_quote(raw, revoked, roots=roots, at=at, cache=cache)
    with pytest.raises(QuoteUntrustedError, match=r"step 5: TCB info: its signature"):
        verify_quote(raw, replace(good, tcb_info=good.tcb_info + " "), roots=roots, at=at, cache=cache)


def test_tds_of_one_platform_are_rated_by_their_own_svns(pki, roots, registers, at):
    """A platform that is known, but whose TD states other SVNs, gets the status of these, cached or not."""
    cache, collateral = ContentCache(), pki.collateral()
    later = at + timedelta(days=1)
    policy = VerificationPolicy(relaxations=tuple(AcceptStatus(status, later) for status in LEVEL_STATUSES[:-1]))

    def status(wanted: TcbStatus) -> TcbStatus:
        raw = make_quote(pki, registers=registers, report_data=ReportData(bytes(64)), tcb_status=wanted.value)
        return verify_quote(raw, collateral, roots=roots, at=at, policy=policy, cache=cache).tcb_status

    for _ in range(2):
        assert [status(wanted) for wanted in LEVEL_STATUSES[:-1]] == list(LEVEL_STATUSES[:-1])
    with pytest.raises(QuoteUntrustedError, match=r"step 13: .*Revoked"):
        status(TcbStatus.REVOKED)


def test_a_relaxation_ends_in_spite_of_the_cache(pki, roots, registers, at):
    """What a relaxation let in is refused from its end on, though platform and collateral are remembered."""
    cache, collateral = ContentCache(), pki.collateral()
    end = at + timedelta(hours=1)
    policy = VerificationPolicy(relaxations=(AcceptStatus(TcbStatus.OUT_OF_DATE, end),))
    raw = make_quote(pki, registers=registers, report_data=ReportData(bytes(64)), tcb_status="OutOfDate")

    verified = verify_quote(raw, collateral, roots=roots, at=at, policy=policy, cache=cache)

    assert (verified.expires_at, verified.expires_first) == (end, "acceptance of OutOfDate")
    assert verified.device_id == sha256(verified.ppid).digest()
    with pytest.raises(QuoteUntrustedError, match=r"step 19: TCB status OutOfDate .* is not accepted since"):
        verify_quote(raw, collateral, roots=roots, at=end, policy=policy, cache=cache)
