"""`dstack handover verify` on receipts that are not of two like machines with the newest platform."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from dstack.attestation.certificates import parse_certificate
from dstack.attestation.collateral import serialise_collateral
from dstack.attestation.tcb import TcbStatus
from dstack.attestation.verification_policy import VerificationPolicy, accept_statuses
from dstack.errors import CollateralUnavailableError, DstackError, QuoteUntrustedError
from dstack.simulator.platform import Defects
from replicator.documents import serialise_request
from replicator.peers import EvidenceVerifier
from tests.handover_attacks import unfit_machine
from tests.integration.test_handover_command import handover
from tests.worlds import NOW, Handover, Site, make_handover, make_node, receive

OUT_OF_DATE = "OutOfDate@2027-06-30T00:00:00Z"


@pytest.fixture
def world(tmp_path: Path, site: Site) -> Handover:
    """Two nodes, and beside them the maker's root and statements."""
    (tmp_path / "root.der").write_bytes(site.pki.root_der)
    (tmp_path / "collateral.json").write_text(serialise_collateral(site.pki.collateral()))
    return make_handover(tmp_path, site)


def verified(world: Handover, receipt: Path, collateral: str, *words: str, root: str = "root.der") -> str:
    """What is said of *receipt*."""
    trusted = ("--root", str(world.folder / root), "--collateral", str(world.folder / collateral))
    answer: str = handover("verify", str(receipt), *trusted, *words, "--json").facts["kind"]
    return answer


def received(world: Handover) -> Path:
    """The new node's receipt."""
    world.hand_over()
    (receipt,) = (world.folder / "new" / "receipts").glob("*.json")
    return receipt


def test_each_machine_is_verified_by_the_statements_about_its_model(world: Handover) -> None:
    """A folder has a file for every model of platform; without that of a machine nobody is believed."""
    receipt, folder = received(world), world.folder / "collateral"
    folder.mkdir()
    model = folder / f"{world.site.pki.platform.fmspc.hex()}.json"
    model.write_text((world.folder / "collateral.json").read_text())

    said = verified(world, receipt, "collateral")
    model.rename(folder / "000000000000.json")

    assert said == "handover"
    with pytest.raises(CollateralUnavailableError, match="got neither"):
        verified(world, receipt, "collateral")


def test_a_root_in_pem_is_taken(world: Handover) -> None:
    """As the help says."""
    root = parse_certificate(world.site.pki.root_der, what="root")
    (world.folder / "root.pem").write_bytes(root.public_bytes(Encoding.PEM))

    assert verified(world, received(world), "collateral.json", root="root.pem") == "handover"


class Relaxed(Site):
    """Nodes here take platforms that are out of date."""

    @property
    def verifier(self) -> EvidenceVerifier:
        """As the settings have it."""
        statuses = frozenset({TcbStatus.UP_TO_DATE, TcbStatus.OUT_OF_DATE})
        until = NOW.replace(month=6)
        policy = VerificationPolicy(relaxations=accept_statuses(statuses, until))
        return EvidenceVerifier(self.roots, policy, self, acpi=None)


def test_a_status_that_the_nodes_accepted_is_accepted_by_word(world: Handover, tmp_path: Path) -> None:
    """The receipt of a platform that is out of date verifies where that is asked for, and not otherwise."""
    site = Relaxed(world.site.pki, world.site.image)
    relaxed = make_handover(tmp_path / "relaxed", site)
    machine = unfit_machine(relaxed, defects=Defects(tcb_status="OutOfDate"))
    new = make_node(tmp_path / "relaxed" / "unfit", machine, site, relaxed.chain, relaxed.clock)
    receive(new, relaxed.old.onboard(serialise_request(new.request_key()).encode()))
    (receipt,) = (tmp_path / "relaxed" / "unfit" / "receipts").glob("*.json")

    said = verified(world, receipt, "collateral.json", "--accept-status", OUT_OF_DATE)

    assert said == "handover"
    with pytest.raises(QuoteUntrustedError, match="OutOfDate"):
        verified(world, receipt, "collateral.json")


def test_a_time_that_is_none_is_bad_input(world: Handover, tmp_path: Path) -> None:
    """A receipt from the year 285 million is one sentence, and no traceback."""
    members = json.loads(received(world).read_text())
    members["receipt"]["at"] = 2**53 - 1
    (tmp_path / "late.json").write_text(json.dumps(members))

    with pytest.raises(DstackError, match="want a time in Unix seconds, got 9007199254740991") as raised:
        verified(world, tmp_path / "late.json", "collateral.json")

    assert raised.value.exit_code == 2
