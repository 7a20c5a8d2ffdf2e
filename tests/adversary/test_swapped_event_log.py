"""The attacker runs its own app and shows the event log of another, or edits its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dstack.errors import AppraisalError
from dstack.measurement.event_log import RuntimeEvent, logged, runtime_event_digest

WANTED, OWN = b"\x01" * 32, b"\x66" * 32


@pytest.fixture
def attacker(world):
    """Evidence of the attacker's machine, as it truly is."""
    return world.evidence(world.events(OWN))


def test_unedited_the_attackers_app_is_named(world, attacker):
    """Shown as it is, the machine is appraised as the attacker's app: no more than the truth."""
    assert world.appraise(attacker).compose_hash == OWN


def test_the_log_of_another_machine_is_refused(world, attacker, honest):
    """Another machine's log beside this machine's quote does not fold into its RTMR3."""
    swapped = replace(attacker, event_log=honest.event_log, runtime_events=honest.runtime_events)
    with pytest.raises(AppraisalError, match=r"RTMR3: want .*, the quote has "):
        world.appraise(swapped)


def test_an_edited_name_or_payload_is_refused(world, attacker):
    """The compose hash written over in the log changes its digest, so RTMR3 no longer matches."""
    edited = tuple(
        replace(event, payload=WANTED) if event.name == "compose-hash" else event for event in attacker.runtime_events
    )
    with pytest.raises(AppraisalError, match=r"RTMR3: want "):
        world.appraise(replace(attacker, runtime_events=edited))


def test_stored_digests_are_not_believed(world, attacker):
    """A log with the honest digests kept beside edited payloads is refused: digests are computed, never read."""
    lying = tuple(
        replace(logged(replace(event, payload=WANTED)), digest=runtime_event_digest(event))
        if event.name == "compose-hash"
        else logged(event)
        for event in attacker.runtime_events
    )
    events = tuple(event.runtime for event in lying)
    with pytest.raises(AppraisalError, match=r"RTMR3: want "):
        world.appraise(replace(attacker, event_log=lying, runtime_events=events))


def test_the_displayed_log_does_not_count(world, attacker, honest):
    """Runtime events in the event log alone change nothing: what is replayed is what names the app."""
    boot = tuple(event for event in attacker.event_log if event.runtime is None)
    shown = tuple(logged(event) for event in honest.runtime_events)

    assert world.appraise(replace(attacker, event_log=(*boot, *shown))).compose_hash == OWN


def test_claiming_a_name_later_is_in_vain(world):
    """A running app that emits `compose-hash` or `app-id` itself keeps the identity it was started with."""
    events = (*world.events(OWN), RuntimeEvent("compose-hash", WANTED), RuntimeEvent("app-id", WANTED[:20]))

    appraisal = world.appraise(world.evidence(events))

    assert (appraisal.compose_hash, appraisal.app_id) == (OWN, OWN[:20])


def test_another_image_under_the_honest_config_is_refused(world):
    """A machine with other firmware, whose config names the honest image, is refused at the first register."""
    evidence = world.evidence(world.events(WANTED), fields_override={"mr_td": b"\x66" * 48})
    with pytest.raises(AppraisalError, match=r"MRTD: want .*, the quote has 6666"):
        world.appraise(evidence)
