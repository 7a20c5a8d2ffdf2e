"""A21: removal of an OS image while apps run on it: what does and what does not stop."""

from __future__ import annotations

import pytest

from tests.chain_world import events_of
from tests.governed_world import DEVICE, GRANTED, IMAGE, KMS_MR, ON, GovernedWorld, Kind

OTHER = b"\x06" * 32
NO = (False, "OS image is not allowed")


@pytest.fixture
def running(governed: GovernedWorld) -> GovernedWorld:
    """One app by compose hash, one by version on two images, and a KMS; all of them on the image."""
    governed.grant(
        governed.image(),
        governed.image(OTHER),
        governed.on_app(Kind.DEVICE, DEVICE),
        governed.compose(),
        governed.version(1, compose_hash=b"\xc1" * 32, images=[IMAGE, OTHER]),
        governed.on_kms(Kind.KMS_AGGREGATED_MR, KMS_MR),
        governed.on_kms(Kind.KMS_DEVICE, DEVICE),
    )
    return governed


def answers(world: GovernedWorld, image: bytes) -> list[tuple[bool, str]]:
    """App by compose hash, app by version, KMS, and the operator's word on both."""
    kms = world.kms.functions.isKmsAllowed(world.boot(os_image_hash=image)).call()
    return [
        world.asked(os_image_hash=image),
        world.asked(os_image_hash=image, compose_hash=b"\xc1" * 32),
        (kms[0], kms[1]),
        world.allowed_at(world.now, image=image),
        world.allowed_at(world.now, b"\xc1" * 32, image),
    ]


def test_a21_new_keys_stop_for_everything_on_it_at_once(running: GovernedWorld) -> None:
    """Every app and every KMS, by whichever way it was allowed; the guardian alone can do it."""
    before = answers(running, IMAGE)

    receipt = running.deny(running.image())

    assert (before, answers(running, IMAGE)) == ([GRANTED] * 5, [NO] * 5)
    assert [name for name, _ in events_of(running.kms, receipt)] == ["OsImageHashRemoved", "PolicyChanged"]


def test_a21_what_runs_on_another_image_goes_on(running: GovernedWorld) -> None:
    """The same configurations on the other image are answered as before."""
    running.deny(running.image())

    assert answers(running, OTHER) == [GRANTED] * 5


def test_a21_no_contract_of_an_app_changes(running: GovernedWorld) -> None:
    """Hash, version and device stay listed: the image is KmsAuth's gate, and machines that have keys keep them."""
    receipt = running.deny(running.image())

    assert events_of(running.app, receipt) == []
    functions = running.app.functions
    assert functions.allowedComposeHashes(b"\xc0" * 32).call()
    assert functions.isConfigurationAllowed(b"\xc1" * 32, IMAGE, running.now).call()
    assert tuple(functions.isAppAllowed(running.boot()).call()) == GRANTED


def test_a21_it_comes_back_by_a_proposal_only(running: GovernedWorld) -> None:
    """What was proposed before the removal is stopped; a new proposal waits 48 hours; then all is as before."""
    stale = running.propose(running.image())
    running.deny(running.image())
    denied_at = running.now

    fresh = running.propose(running.image())
    refusal = running.execution_refused(stale, at=fresh.ready_at)
    running.execute(fresh)

    assert refusal == ("DeniedSince", Kind.OS_IMAGE, running.kms.address, IMAGE, denied_at)
    assert answers(running, IMAGE) == [GRANTED] * 5


def test_a21_a_frozen_for_good_app_stops_too(running: GovernedWorld) -> None:
    """Freezing an app for good keeps its image from nobody's denial."""
    running.grant(running.on_app(Kind.FREEZE_FOR_GOOD, ON))

    running.deny(running.image())

    assert running.asked() == NO
