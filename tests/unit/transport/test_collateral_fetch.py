"""Collateral from services in the shape of Intel's, over real sockets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dstack.attestation.verify_collateral import verify_collateral
from dstack.errors import CollateralFatalError, CollateralTransientError, ConfigError
from dstack.simulator.pccs import Behaviour
from dstack.simulator.pki import SimulatedPki
from dstack.transport.collateral import PlatformModel
from dstack.transport.collateral_fetch import INTEL_PCS, PcsClient, endpoint_url
from tests.http_answers import trickling
from tests.pccs_world import BORN, PccsWorld, pccs_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[PccsWorld]:
    """A maker without services yet."""
    with pccs_world(tmp_path) as made:
        yield made


@pytest.mark.parametrize("form", ["der", "pem", "hex"])
def test_everything_comes_from_the_pages_of_version_4(world: PccsWorld, form: str) -> None:
    """Four pages of Intel's shape give what the maker signed, however the CRLs are wrapped."""
    behaviour = Behaviour(crl_form=form)
    client = world.client(world.serve(behaviour))

    collateral = client.fetch(world.model)

    verified = verify_collateral(collateral, roots=world.roots, at=BORN)
    assert verified.parts.tcb_info.fmspc == world.model.fmspc
    assert collateral.tcb_info == world.pki.collateral(BORN).tcb_info
    assert behaviour.requests == [
        "/tdx/certification/v4/tcb?fmspc=50806F000000",
        "/tdx/certification/v4/qe/identity",
        "/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
        "/sgx/certification/v4/rootcacrl",
    ]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_busy_services_are_transient(world: PccsWorld, status: int) -> None:
    """The same question may be answered later."""
    client = world.client(world.serve(Behaviour(status=status)))

    with pytest.raises(CollateralTransientError, match=f"status {status}, which says to ask later"):
        client.fetch(world.model)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 410, 461])
def test_other_statuses_are_fatal(world: PccsWorld, status: int) -> None:
    """Asking again will not help; a redirection is not followed."""
    client = world.client(world.serve(Behaviour(status=status)))

    with pytest.raises(CollateralFatalError, match=f"status {status}"):
        client.fetch(world.model)


def test_an_unknown_platform_is_fatal(world: PccsWorld) -> None:
    """The maker knows its models."""
    client = world.client(world.serve(Behaviour()))

    with pytest.raises(CollateralFatalError, match="fmspc=00906EA10000: status 404: it knows no such platform"):
        client.fetch(PlatformModel("tdx", "platform", bytes.fromhex("00906ea10000")))


def test_slow_services_are_transient(world: PccsWorld) -> None:
    """A wait ends at its limit."""
    client = world.client(world.serve(Behaviour(delay=2.0)), wait=0.2)

    with pytest.raises(CollateralTransientError, match="no answer in time"):
        client.fetch(world.model)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "start", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"]
)
def test_services_that_trickle_are_transient(world: PccsWorld, start: bytes) -> None:
    """A byte before each wait is over does not make the whole any longer, in the headers neither."""
    with (
        trickling(start) as trickle,
        PcsClient(trickle.url, world.roots, wait=10.0, total=0.5) as client,
        pytest.raises(CollateralTransientError, match="no answer in time"),
    ):
        client.fetch(world.model)


def test_absent_services_are_transient(world: PccsWorld) -> None:
    """Nobody listens there."""
    client = world.client("http://127.0.0.1:1")

    with pytest.raises(CollateralTransientError, match=r"http://127\.0\.0\.1:1/tdx/.*: no answer"):
        client.fetch(world.model)


def test_endless_answers_are_fatal(world: PccsWorld) -> None:
    """No more is read than an answer can have."""
    client = world.client(world.serve(Behaviour(padding=(1 << 20) + 1)))

    with pytest.raises(CollateralFatalError, match="want an answer of at most 1048576 bytes, got more"):
        client.fetch(world.model)


def test_without_the_page_a_root_crl_is_where_the_trusted_root_says(world: PccsWorld) -> None:
    """Intel's own service has no such page; a simulated root names a place that does not exist."""
    client = world.client(world.serve(Behaviour(has_root_crl=False)))

    with pytest.raises(CollateralTransientError, match=r"https://simulator\.invalid/root\.der: no answer"):
        client.fetch(world.model)


def test_an_untrusted_root_sends_nobody_anywhere(world: PccsWorld) -> None:
    """The place that a foreign root's certificate names is not asked."""
    impostor = SimulatedPki.generate(BORN, seed=b"impostor")
    client = world.client(world.serve(Behaviour(has_root_crl=False, impostor=impostor)))

    with pytest.raises(CollateralFatalError, match="rootcacrl: status 404"):
        client.fetch(world.model)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        (INTEL_PCS, INTEL_PCS),
        ("https://pccs.example/sgx/certification/v4/", "https://pccs.example"),
        ("https://pccs.example:8081/cache/tdx/certification/v4", "https://pccs.example:8081/cache"),
        ("http://127.0.0.1:8081", "http://127.0.0.1:8081"),
        ("http://[::1]:8081/", "http://[::1]:8081"),
        ("http://localhost", "http://localhost"),
    ],
)
def test_endpoints_are_https_or_here(url: str, base: str) -> None:
    """Upstream's settings name the SGX path; it is cut off."""
    assert endpoint_url(url) == base


@pytest.mark.parametrize(
    "url",
    [
        "",
        "pccs.example",
        "http://pccs.example",
        "http://127.0.0.1.pccs.example",
        "ftp://127.0.0.1",
        "https://user:secret@pccs.example",
        "https://pccs.example/?a=b",
        "https://pccs.example:port",
    ],
)
def test_other_endpoints_are_no_settings(url: str) -> None:
    """Nothing is asked in the clear, and no secret is carried in a URL."""
    with pytest.raises(ConfigError, match="collateral endpoint: want") as caught:
        endpoint_url(url)
    assert "secret" not in str(caught.value)
