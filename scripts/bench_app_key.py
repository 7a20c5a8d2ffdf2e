"""GetAppKey end to end over one warm TLS connection, and where the time goes. Used by bench.py."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.appraise import appraise
from dstack.attestation.quote import parse_quote
from dstack.attestation.ratls import evidence_extensions
from dstack.attestation.report_data import ratls_report_data
from dstack.attestation.roots import TrustedRoots, simulated_root
from dstack.attestation.verify import verify_quote
from dstack.chain.client import ChainClient
from dstack.chain.kms_auth import KmsAuthReader
from dstack.devnet.governance import Governance
from dstack.devnet.kms_steps import RunningKms, start_kms
from dstack.devnet.plan import Plan, plan_app
from dstack.devnet.programs import Programs
from dstack.devnet.transcript import Transcript
from dstack.devnet.world import World
from dstack.errors import PeerRefusedError
from dstack.guest.platform import platform_evidence
from dstack.keys.certs import build_client_cert
from dstack.keys.derivation import RootKeys, derive_app_keys
from dstack.keys.pem import certificate_pem, load_certificate, load_private_key, private_key_pem, spki_der
from dstack.measurement.rtmr3 import OUR_SEQUENCE, BootInputs, boot_events, split_at_boot_mr_done
from dstack.measurement.vm_config import serialise_vm_config
from dstack.policy import boot_info
from dstack.simulator.platform import SimulatedPlatform
from dstack.transport.client import PrpcClient
from dstack.transport.collateral import DirectoryCollateral
from dstack.transport.tls import TlsIdentity, client_context, unauthenticated_client_context
from dstack.wire.kms import AppKeyResponse, GetAppKeyRequest, GetTempCaCertResponse


def measure(seconds: float) -> dict[str, float]:
    """Start a chain and a KMS, ask for one app's keys again and again, and take the parts apart.

    Returns:
        `requests_per_second`; milliseconds (medians): `total`, and of it `transport` (a request that is refused
        unread), `evidence` (collateral, verification, appraisal), `chain` (both questions), `derivation`, and `other`.
    """
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="dstack-bench-")))
        quiet = cleanup.enter_context(Path(os.devnull).open("w"))
        programs = cleanup.enter_context(Programs(folder / "logs"))
        world = World.create(Transcript(quiet, False, folder / "results"), programs, folder)
        governance = Governance.deploy(world, cleanup)
        docker_compose = files("dstack.devnet").joinpath("docker-compose.yaml").read_bytes()
        plan = plan_app(world, docker_compose, governance.app, bytes(20))
        kms = start_kms(world, governance)
        governance.allow_apps({plan.app_id: plan.compose_hash}, world)
        return _measure(world, governance, kms, plan, seconds)


def _measure(world: World, governance: Governance, kms: RunningKms, plan: Plan, seconds: float) -> dict[str, float]:
    platform = _asking_platform(world, plan)
    temporary = _temporary_ca(kms)
    key = ec.generate_private_key(ec.SECP256R1())
    report_data = ratls_report_data(spki_der(key))
    evidence = platform_evidence(platform, report_data)
    client_certificate = build_client_cert(
        key,
        load_certificate(temporary.temp_ca_cert),
        load_private_key(temporary.temp_ca_key),
        evidence_extensions(evidence),
        at=datetime.now(UTC),
    )
    identity = TlsIdentity(certificate_pem(client_certificate), private_key_pem(key))
    roots = TrustedRoots((simulated_root(world.pki.root_der),))

    def judge() -> object:
        collateral = DirectoryCollateral(world.platform).collateral_for(parse_quote(evidence.quote))
        verified = verify_quote(evidence.quote, collateral, roots=roots, at=datetime.now(UTC))
        return appraise(evidence, verified, expected_report_data=report_data)

    verified = verify_quote(evidence.quote, world.pki.collateral(), roots=roots, at=datetime.now(UTC))
    boot = boot_info(appraise(evidence, verified, expected_report_data=report_data))
    reader = KmsAuthReader(ChainClient(governance.rpc_url, block_tag="latest"), governance.kms_auth)
    root = RootKeys(ca=bytes(31) + b"\1", k256=bytes(31) + b"\2")

    with PrpcClient(f"{kms.url}/prpc", tls=client_context(ca_pem=temporary.ca_cert, identity=identity)) as client:
        request = GetAppKeyRequest(api_version=1, vm_config=platform.config)
        total, rate = _median(lambda: client.call("GetAppKey", request, AppKeyResponse), seconds)
        parts = {
            "transport": _median(lambda: _refused(client, request), seconds)[0],
            "evidence": _median(judge, seconds)[0],
            "chain": _median(lambda: (reader.authorize_kms(boot), reader.authorize_app(boot)), seconds)[0],
            "derivation": _median(lambda: derive_app_keys(root, plan.app_id, plan.instance_id), seconds)[0],
        }
    figures = {"requests_per_second": rate, "total": total, **parts, "other": total - sum(parts.values())}
    return {name: round(value, 3) for name, value in figures.items()}


def _asking_platform(world: World, plan: Plan) -> SimulatedPlatform:
    platform = SimulatedPlatform(world.pki, world.image, serialise_vm_config(world.vm_config), plan.compose_hash)
    inputs = BootInputs(
        app_id=plan.app_id, compose_hash=plan.compose_hash, instance_id=plan.instance_id, storage_fs="zfs"
    )
    for event in split_at_boot_mr_done(boot_events(OUR_SEQUENCE, inputs))[0]:
        platform.extend(event)
    return platform


def _temporary_ca(kms: RunningKms) -> GetTempCaCertResponse:
    with PrpcClient(f"{kms.url}/prpc", tls=unauthenticated_client_context()) as client:
        return client.call("GetTempCaCert", None, GetTempCaCertResponse)


def _refused(client: PrpcClient, request: GetAppKeyRequest) -> None:
    """The same bytes on the same connection, for a method that does not exist."""
    try:
        client.call("Nothing", request, AppKeyResponse)
    except PeerRefusedError:
        return
    raise AssertionError("a method that does not exist answered")


def _median(operation: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Median milliseconds of an operation, and how many a second, after one to warm up."""
    operation()
    taken: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        before = time.perf_counter()
        operation()
        taken.append(time.perf_counter() - before)
    return statistics.median(taken) * 1000, len(taken) / sum(taken)
