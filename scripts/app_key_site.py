"""A chain, a KMS that runs on it, callers with certificates, and load from them: for what asks for an app's keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric import ec
from web3 import Web3

from dstack.attestation.ratls import evidence_extensions
from dstack.attestation.report_data import ratls_report_data
from dstack.chain.operator import Action, Kind
from dstack.devnet.faulty_endpoints import FaultyEndpoint, faulty_endpoints
from dstack.devnet.governance import Governance
from dstack.devnet.kms_steps import RunningKms, start_kms
from dstack.devnet.plan import STORAGE_FS
from dstack.devnet.programs import Programs
from dstack.devnet.transcript import Transcript
from dstack.devnet.world import World
from dstack.guest.platform import platform_evidence
from dstack.keys.certs import build_client_cert
from dstack.keys.pem import certificate_pem, load_certificate, load_private_key, private_key_pem, spki_der
from dstack.measurement.rtmr3 import OUR_SEQUENCE, BootInputs, boot_events, split_at_boot_mr_done
from dstack.measurement.vm_config import serialise_vm_config
from dstack.simulator.platform import SimulatedPlatform
from dstack.transport.client import PrpcClient
from dstack.transport.tls import unauthenticated_client_context
from dstack.values import AppId, ComposeHash, InstanceId
from dstack.wire.kms import GetTempCaCertResponse

CONNECTIONS = 8
BLOCK_KEPT_SECONDS = 1.0
_LOAD = Path(__file__).with_name("app_key_load.py")
# The chain's block is kept as on a chain of value, and one address may ask as often as it likes.
_SETTINGS = f"""\
chain.block_kept_for = "{BLOCK_KEPT_SECONDS:.0f}s"
[core.limits]
requests_per_second = 100000
requests_per_second_of_peer = 100000
"""


@dataclass(frozen=True)
class Caller:
    """One machine: what it measures of itself."""

    app_id: AppId
    compose_hash: ComposeHash
    instance_id: InstanceId

    def platform(self, world: World) -> SimulatedPlatform:
        """It, at the time when it asks for its keys."""
        platform = SimulatedPlatform(world.pki, world.image, serialise_vm_config(world.vm_config), self.compose_hash)
        inputs = BootInputs(
            app_id=self.app_id,
            compose_hash=self.compose_hash,
            instance_id=self.instance_id,
            storage_fs=STORAGE_FS,
        )
        for event in split_at_boot_mr_done(boot_events(OUR_SEQUENCE, inputs))[0]:
            platform.extend(event)
        return platform


@dataclass(frozen=True)
class Site:
    """A KMS that runs, and everything that callers need.

    Attributes:
        endpoints: What the KMS asks instead of the chain itself; honest until told otherwise.
        temporary: The authority that callers certify themselves with.
    """

    world: World
    governance: Governance
    endpoints: Sequence[FaultyEndpoint]
    kms: RunningKms
    temporary: GetTempCaCertResponse

    @classmethod
    def start(cls, cleanup: ExitStack, *, endpoint_count: int = 0) -> Self:
        """Start a chain and a KMS; *cleanup* ends them.

        Args:
            cleanup: Closed by whoever calls.
            endpoint_count: How many endpoints the KMS asks; none of them lets it ask the chain itself.
        """
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="dstack-bench-")))
        quiet = cleanup.enter_context(Path(os.devnull).open("w"))  # noqa: SIM115 - closed by *cleanup*
        programs = cleanup.enter_context(Programs(folder / "logs"))
        world = World.create(Transcript(quiet, False, folder / "results"), programs, folder)
        governance = Governance.deploy(world, cleanup)
        endpoints = cleanup.enter_context(faulty_endpoints(governance.rpc_url, endpoint_count))
        kms = start_kms(world, governance, rpc_urls=[endpoint.url for endpoint in endpoints], more=_SETTINGS)
        with PrpcClient(f"{kms.url}/prpc", tls=unauthenticated_client_context()) as client:
            temporary = client.call("GetTempCaCert", None, GetTempCaCertResponse)
        return cls(world, governance, endpoints, kms, temporary)

    def allow(self, versions: Mapping[AppId, Sequence[ComposeHash]]) -> None:
        """Have the owners allow these versions of apps; the KMS knows when this returns."""
        actions = [
            Action.of(Kind.COMPOSE_HASH, Web3.to_checksum_address(app), version)
            for app, allowed in versions.items()
            for version in allowed
        ]
        pending = self.governance.propose(actions, "versions of apps", self.world)
        self.governance.execute_when_ready(pending, self.world)
        time.sleep(BLOCK_KEPT_SECONDS + 0.1)

    def identities(self, callers: Sequence[Caller]) -> list[str]:
        """For each a file with a fresh key and a certificate that carries its evidence."""
        folder = Path(tempfile.mkdtemp(prefix="callers-", dir=self.world.secret))
        certifier = load_certificate(self.temporary.temp_ca_cert), load_private_key(self.temporary.temp_ca_key)
        files = []
        for number, caller in enumerate(callers):
            key = ec.generate_private_key(ec.SECP256R1())
            evidence = platform_evidence(caller.platform(self.world), ratls_report_data(spki_der(key)))
            certificate = build_client_cert(key, *certifier, evidence_extensions(evidence), at=datetime.now(UTC))
            path = folder / f"{number}.pem"
            path.write_text(private_key_pem(key) + certificate_pem(certificate))
            files.append(str(path))
        return files

    def start_load(self, identities: Sequence[str], mode: str, **limits: float | None) -> subprocess.Popen[str]:
        """Begin to ask; SIGTERM ends it, and `load_figures` waits for the end.

        Args:
            identities: Who asks, as `identities` made them.
            mode: As `app_key_load.run` takes it.
            **limits: `seconds`, `count` and `rate`, as that takes them.
        """
        order = {
            "ca_pem": self.temporary.ca_cert,
            "port": int(self.kms.url.rpartition(":")[2]),
            "identities": identities,
            "vm_config": serialise_vm_config(self.world.vm_config),
            "mode": mode,
            "connections": CONNECTIONS,
            **limits,
        }
        with tempfile.TemporaryFile("w+") as standard_input:
            json.dump(order, standard_input)
            standard_input.seek(0)
            return subprocess.Popen(
                [sys.executable, str(_LOAD)], stdin=standard_input, stdout=subprocess.PIPE, text=True
            )


def load_figures(program: subprocess.Popen[str]) -> dict[str, Any]:
    """What a load says at its end, as `app_key_load.run` returns it.

    Raises:
        SystemExit: It failed, and has said why.
    """
    output, _ = program.communicate()
    if program.returncode:
        raise SystemExit(f"load: ended with {program.returncode}")
    figures: dict[str, Any] = json.loads(output)
    return figures
