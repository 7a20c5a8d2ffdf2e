"""Replicators under the real contracts: a chain, a simulated site, and nodes that ask the chain over its endpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from web3 import Web3

from dstack.attestation.collateral import Collateral
from dstack.attestation.quote import Quote
from dstack.chain.operator import Action, Kind
from dstack.devnet.anvil import Anvil
from dstack.measurement.compose import compose_hash
from dstack.measurement.identities import device_id
from dstack.simulator.os_image import make_image
from dstack.simulator.pki import SimulatedPki
from replicator.chain_law import ChainLaw
from replicator.config import ChainSettings
from replicator.documents import Address, Law
from replicator.node import Replicator
from tests.chain_world import ChainWorld, chain_world
from tests.governed_world import version_data
from tests.http_answers import answering
from tests.worlds import Machine, Site, make_node


@dataclass(frozen=True, slots=True)
class ChainSite(Site):
    """A site whose maker's statements are always of the chain's present."""

    w3: Web3

    def collateral_for(self, quote: Quote) -> Collateral:
        """What the maker says today."""
        # An hour old: who asks an endpoint that lags is not there before it was issued.
        return self.pki.collateral(_newest(self.w3) - timedelta(hours=1))


@dataclass(frozen=True)
class LawWorld:
    """The governed contracts, a site whose image and device they allow, and no version of the app yet."""

    chain: ChainWorld
    site: ChainSite
    laws: list[ChainLaw] = field(default_factory=list)

    @property
    def settings(self) -> ChainSettings:
        """The law of this chain, at its own endpoint."""
        deployment = self.chain.deployment
        addresses = (Address.from_hex(deployment.operator), Address.from_hex(deployment.kms_auth))
        law = Law(deployment.chain_id, *addresses)
        return ChainSettings(law, (self.chain.chain.rpc_url,), "latest", max_age=None, requires_genesis=False)

    def machine(self, folder: Path, compose: bytes) -> Machine:
        """A machine of the app."""
        return self.site.machine(folder, compose, app_id=self.chain.app_id)

    def node(self, folder: Path, machine: Machine, *, settings: ChainSettings | None = None) -> Replicator:
        """A replicator as after a start: it has asked the chain nothing yet."""
        chosen = settings or self.settings
        law = ChainLaw(chosen)
        self.laws.append(law)
        # A clock that is far behind: the time is the chain's.
        return make_node(folder, machine, self.site, law, lambda: datetime(2020, 1, 1, tzinfo=UTC), chosen)

    def version(self, number: int, compose: bytes, *, sunset: int = 0) -> Action:
        """The app's version of that number, which replaces the one before if there is a sunset for that."""
        return Action(
            Kind.VERSION,
            self.chain.app_auth.address,
            version_data(
                number,
                compose_hash=compose_hash(compose),
                images=(self.site.image.os_image_hash,),
                supersedes=number - 1 if sunset else 0,
                sunset=sunset,
            ),
        )

    def close(self) -> None:
        """End what the nodes opened."""
        while self.laws:
            self.laws.pop().close()

    def now(self) -> int:
        """The chain's time."""
        return int(self.chain.w3.eth.get_block("latest")["timestamp"])

    def warp(self, by: timedelta) -> None:
        """Let time pass."""
        self.chain.warp(by)


def _newest(w3: Web3) -> datetime:
    """The time of the newest block."""
    return datetime.fromtimestamp(w3.eth.get_block("latest")["timestamp"], UTC)


@contextmanager
def law_world() -> Iterator[LawWorld]:
    """A chain of its own."""
    with Anvil.start() as anvil:
        chain = chain_world(anvil)
        pki = SimulatedPki.generate(_newest(chain.w3) - timedelta(days=1), b"law")
        world = LawWorld(chain, ChainSite(pki, make_image(), chain.w3))
        image = chain.on_kms(Kind.OS_IMAGE, world.site.image.os_image_hash)
        device = chain.on_app(Kind.DEVICE, device_id(pki.platform.ppid))
        chain.grant(image, device)
        yield world


Batch = list[dict[str, Any]]


@contextmanager
def go_between(
    url: str,
    *,
    ask: Callable[[Batch], Batch] = lambda same: same,
    tell: Callable[[Batch, Batch], Batch] = lambda _, same: same,
) -> Iterator[str]:
    """An endpoint that passes everything on to *url*, and changes questions and answers on the way."""

    def answer(_method: str, _path: str, body: bytes) -> tuple[int, bytes]:
        asked = json.loads(body)
        told = httpx.post(url, json=ask(json.loads(body)), trust_env=False).json()
        return 200, json.dumps(tell(asked, told)).encode()

    with answering(answer) as endpoint:
        yield endpoint.url
