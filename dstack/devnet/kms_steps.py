"""Step 3: a KMS that may not make keys until the chain allows its measurement."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dstack.attestation.evidence import parse_evidence
from dstack.devnet.evidence import keep_evidence
from dstack.devnet.governance import Governance
from dstack.devnet.http import call, wait_for
from dstack.devnet.plan import STORAGE_FS
from dstack.devnet.programs import Program, free_port
from dstack.devnet.transcript import demand
from dstack.devnet.world import Machine, World, boot_answer
from dstack.measurement.compose import app_compose_from_docker_compose, compose_hash, default_app_id
from dstack.measurement.document import reference_values
from dstack.measurement.identities import mr_aggregated
from dstack.measurement.mr_config_id import mr_config_id_v1
from dstack.measurement.registers import ZERO_REGISTER
from dstack.measurement.rtmr3 import OUR_SEQUENCE, BootInputs, boot_events, predict_rtmr3
from dstack.values import Digest32

_START_SECONDS = 30.0
_BLOCK_KEPT_SECONDS = 1.1
_ACCEPTED_FOR = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class RunningKms:
    """A bootstrapped KMS.

    Attributes:
        url: Where guests ask, without `/prpc`.
        ca_spki: Public key (SPKI DER) of its root CA: the key provider id that its apps measure.
        program: Its standard output is its log of decisions.
    """

    url: str
    ca_spki: bytes
    program: Program


def start_kms(world: World, governance: Governance, *, rpc_urls: Sequence[str] = (), more: str = "") -> RunningKms:
    """Start it, watch it being refused, allow it, bootstrap it.

    Args:
        world: Where it runs.
        governance: Who allows it.
        rpc_urls: Endpoints of its chain that must agree; the chain itself unless there are any.
        more: Settings that a demo does not need, appended to its file, whose last table is `core.auth_api`.
    """
    say = world.say
    machine = Machine("kms-cvm", _app_compose())
    computed = _expected_mr_aggregated(world, machine)
    demand(boot_answer(machine.start(world)).get("ready") is True, "the KMS's machine did not boot")

    rpc_port, onboard_port = free_port(), free_port()
    config = _write_config(
        world,
        governance,
        machine,
        rpc_port=rpc_port,
        onboard_port=onboard_port,
        rpc_urls=rpc_urls or [governance.rpc_url],
        more=more,
    )
    program = world.programs.start("kms", "kms", "-c", str(config))
    onboard = f"http://127.0.0.1:{onboard_port}"
    wait_for(f"{onboard}/health", program, seconds=_START_SECONDS)
    say.did(f"KMS runs as its own program and waits to be bootstrapped at {onboard}")

    told = call(f"{onboard}/prpc/Onboard.GetAttestationInfo?json", {}).body
    demand(told.get("mr_aggregated") == computed.hex(), "the KMS's mrAggregated differs from the one computed offline")
    say.proved(f"its mrAggregated is the one computed offline: {computed.hex()}", mr_aggregated=computed.hex())

    _bootstrap_refused(world, onboard)
    governance.allow_kms(Digest32(computed), world)
    if more:
        # A KMS that keeps the chain's block for a second sees the grant that much later.
        time.sleep(_BLOCK_KEPT_SECONDS)
    return _bootstrap(world, onboard, rpc_port, program)


def _app_compose() -> bytes:
    docker_compose = files("dstack.devnet").joinpath("kms-docker-compose.yaml").read_bytes()
    # Without an instance id every boot measures the same, so that one mrAggregated can be allowed.
    return app_compose_from_docker_compose(docker_compose, name="kms", key_provider="none", no_instance_id=True)


def _expected_mr_aggregated(world: World, machine: Machine) -> Digest32:
    """From public inputs alone: the image, the machine's shape and the compose file."""
    identity = compose_hash(machine.app_compose)
    inputs = BootInputs(
        app_id=default_app_id(identity),
        compose_hash=identity,
        key_provider="none",
        storage_fs=STORAGE_FS,
    )
    rtmr3 = predict_rtmr3(boot_events(OUR_SEQUENCE, inputs))
    reference = reference_values(world.vm_config, world.image.boot_log(world.vm_config))
    registers = (reference.mrtd, reference.rtmr0, reference.rtmr1, reference.rtmr2, rtmr3)
    return mr_aggregated(
        *registers, mr_config_id=mr_config_id_v1(identity), mr_owner=ZERO_REGISTER, mr_owner_config=ZERO_REGISTER
    )


def _write_config(
    world: World,
    governance: Governance,
    machine: Machine,
    *,
    rpc_port: int,
    onboard_port: int,
    rpc_urls: Sequence[str],
    more: str,
) -> Path:
    certificates = world.secret / "kms-certs"
    certificates.mkdir(mode=0o700)
    pccs = world.start_pccs()
    text = f"""\
[rpc]
address = "127.0.0.1"
port = {rpc_port}

[core]
cert_dir = "{certificates}"
agent_socket = "{machine.socket(world)}"
# The apps' own contracts decide about stale platforms; in production leave the default, ["UpToDate"].
accepted_tcb_statuses = ["UpToDate", "OutOfDate"]
accepted_tcb_statuses_until = {(datetime.now(UTC) + _ACCEPTED_FOR).isoformat(timespec="seconds")}

[core.onboard]
address = "127.0.0.1"
port = {onboard_port}

[core.image]
# Simulated machines have no ACPI tables, only digests of some; in production name a source that has seen yours.
acpi_tables = "from-log"

[core.attestation]
# NOT PRODUCTION: trusts the simulator's root.
insecure_allow_external_trust_anchors = true
root_ca.tdx = "{world.platform / "root.der"}"
urls.pccs = "{pccs}"
urls.collateral_dir = "{world.secret / "kms-collateral"}"

[core.auth_api]
type = "chain"
chain.rpc_urls = {json.dumps(list(rpc_urls))}
chain.kms_contract = "{governance.kms_auth}"
chain.chain_id = {governance.deployment.chain_id}
chain.block_tag = "latest"  # a development chain finalizes nothing in time
{more}"""
    path = world.secret / "kms.toml"
    path.write_text(text)
    world.say.keep("kms/kms.toml", text)
    return path


def _bootstrap_refused(world: World, onboard: str) -> None:
    answer = call(f"{onboard}/prpc/Onboard.Bootstrap?json", {"domain": "localhost"})
    demand(not answer.ok, "a KMS that the chain does not allow was bootstrapped")
    rule, reason = str(answer.body.get("rule")), str(answer.body.get("error"))
    demand(rule == "AGGREGATED_MR", f"want a refusal by AGGREGATED_MR, got {rule}: {reason}")
    world.say.refused("bootstrap before the chain allows this KMS", by="KmsAuth", rule=rule, reason=reason)


def _bootstrap(world: World, onboard: str, rpc_port: int, program: Program) -> RunningKms:
    say, url = world.say, f"https://localhost:{rpc_port}"
    answer = call(f"{onboard}/prpc/Onboard.Bootstrap?json", {"domain": "localhost"})
    demand(answer.ok, f"bootstrap was refused: {answer.text[:300]}")
    say.keep("kms/bootstrap-info.json", json.dumps(answer.body, indent=2) + "\n")
    keep_evidence(say, "kms", parse_evidence(bytes.fromhex(answer.body["attestation"])))
    say.did("Bootstrap: the KMS made its root keys and a quote over them")
    demand(call(f"{onboard}/finish").ok, "the KMS did not finish its onboarding")

    # The certificate ends at a root that this KMS made itself; guests check its evidence, curl needs -k.
    wait_for(f"{url}/prpc/KMS.GetMeta?json", program, seconds=_START_SECONDS, verify=False)
    meta = call(f"{url}/prpc/KMS.GetMeta?json", {}, verify=False).body
    certificate = x509.load_pem_x509_certificate(str(meta["ca_cert"]).encode())
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    demand(meta["k256_pubkey"] == answer.body["k256_pubkey"], "GetMeta shows another key than Bootstrap")
    say.keep("kms/meta.json", json.dumps(meta, indent=2) + "\n")
    say.keep("kms/root-ca.pem", str(meta["ca_cert"]))
    say.keep("kms/rpc.pem", ssl.get_server_certificate(("127.0.0.1", rpc_port)))
    say.did(f"GetMeta over TLS at {url}: root key {meta['k256_pubkey']}")
    return RunningKms(url, spki, program)
