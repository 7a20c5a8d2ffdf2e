"""NOT PRODUCTION. `python -m dstack.simulator`: a platform, an OS image, and machines that boot on them."""

from __future__ import annotations

import argparse
import json
import logging
import secrets
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from dstack.attestation.collateral import serialise_collateral
from dstack.attestation.roots import TrustedRoots, simulated_root
from dstack.attestation.tcb import TcbStatus
from dstack.attestation.verification_policy import VerificationPolicy
from dstack.errors import ConfigError, DstackError, InputError, KeyReleaseDeniedError
from dstack.guest.agent import GuestAgent
from dstack.guest.app import SOCKET_MODE, agent_app
from dstack.guest.boot import Booted, SeedCall, Surroundings, boot
from dstack.guest.host_shared import (
    INSTANCE_INFO,
    HostShared,
    copy_host_shared,
    load_host_shared,
    load_instance_info,
    serialise_instance_info,
)
from dstack.guest.kms_client import KmsTrust, request_app_keys
from dstack.guest.local_keys import request_seed
from dstack.guest.tappd import LegacyAgent, legacy_app
from dstack.measurement.vm_config import serialise_vm_config
from dstack.simulator.key_provider import EnclaveCollateral, SimulatedKeyProvider
from dstack.simulator.os_image import DEFAULT_NAME, SimulatedImage, make_image
from dstack.simulator.pccs import Behaviour, pccs_app
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.platform import Defects, SimulatedPlatform
from dstack.simulator.quoting import Enclave
from dstack.simulator.statements import EVALUATION_NUMBER
from dstack.transport.collateral import DirectoryCollateral
from dstack.transport.key_provider import KeyProviderClient
from dstack.transport.listener import Listener
from dstack.transport.private_file import replace_private
from dstack.values import AppId, Digest32

_NOTICE = "NOT PRODUCTION: this is a simulator; its quotes come from software, under a root of its own"
_PKI = "the platform: a folder that `pki` made"
_CVM_FILES = {
    "--pki": _PKI,
    "--image": "the OS image: a folder that `image` made",
    "--host-shared": "what its host gives it: .sys-config.json, app-compose.json and the like",
    "--state": "folder of what it writes itself: its keys, and its instance id for the next boot",
    "--socket": "where its guest agent listens",
}

_log = logging.getLogger("simulator")


def main() -> int:
    """Do what the command line says; the exit code is that of the error."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    _log.warning(_NOTICE)
    try:
        arguments.run(arguments)
    except DstackError as exc:
        _say(_refusal(exc))
        return exc.exit_code
    except OSError as exc:
        _say({"error": f"{exc.filename}: {exc.strerror}", "kind": type(exc).__name__})
        return InputError.exit_code
    return 0


def make_pki(arguments: argparse.Namespace) -> None:
    """Generate a platform, its maker's keys included, into a folder."""
    SimulatedPki.generate(datetime.now(UTC)).save(arguments.folder)


def make_os_image(arguments: argparse.Namespace) -> None:
    """Write an OS image of stand-in files into a folder."""
    image = make_image(arguments.name)
    image.save(arguments.folder)
    if arguments.sys_config is not None:
        vm_config = serialise_vm_config(image.vm_config())
        arguments.sys_config.parent.mkdir(parents=True, exist_ok=True)
        arguments.sys_config.write_text(json.dumps({"kms_urls": [], "gateway_urls": [], "vm_config": vm_config}))
    _say({"os_image_hash": image.os_image_hash.hex()})


def make_collateral(arguments: argparse.Namespace) -> None:
    """Write what a platform's maker says of it now; good for 30 days."""
    pki = SimulatedPki.load(arguments.pki)
    arguments.out.write_text(serialise_collateral(pki.collateral(datetime.now(UTC))))


def run_pccs(arguments: argparse.Namespace) -> None:
    """Answer as Intel's collateral service does, about one platform, until SIGTERM or SIGINT."""
    pki = SimulatedPki.load(arguments.pki)
    behaviour = Behaviour(
        delay=arguments.delay,
        status=arguments.status,
        evaluation_number=arguments.evaluation_number,
        crl_number=arguments.crl_number,
        wrong_signer=arguments.wrong_signer,
        crl_form=arguments.crl_form,
    )
    listener = Listener(pccs_app(pki, lambda: datetime.now(UTC), behaviour), port=arguments.port)
    _serve(listener, {"ready": True, "url": f"http://127.0.0.1:{listener.port}", "fmspc": pki.platform.fmspc.hex()})


def run_key_provider(arguments: argparse.Namespace) -> None:
    """Give keys to machines of one platform, until SIGTERM or SIGINT. Its keys end with it."""
    pki = SimulatedPki.load(arguments.pki)
    enclave = Enclave(Digest32.from_hex(arguments.enclave))
    provider = SimulatedKeyProvider(pki, enclave, secrets.token_bytes(32), lambda: datetime.now(UTC))
    stopped = _stopped_by_signal()
    with provider.serving() as port:
        _say({"ready": True, "address": f"127.0.0.1:{port}", "mr_enclave": enclave.mr_enclave.hex()})
        stopped.wait()


def run_cvm(arguments: argparse.Namespace) -> None:
    """Boot one machine and serve its guest agent until SIGTERM or SIGINT."""
    pki = SimulatedPki.load(arguments.pki)
    if arguments.root_out:
        arguments.root_out.write_bytes(pki.root_der)
    shared = _take_host_shared(arguments.host_shared, arguments.state)
    if arguments.app_id is not None:
        app_id = AppId.from_hex(arguments.app_id)
        shared = replace(shared, instance_info=replace(shared.instance_info, app_id=app_id))
    platform = SimulatedPlatform(
        pki,
        SimulatedImage.load(arguments.image),
        shared.sys_config.vm_config,
        shared.app_compose.compose_hash,
        Defects(arguments.tcb_status, arguments.debug),
    )
    trust = _kms_trust(pki, arguments) if arguments.verify_kms else None
    around = Surroundings(
        platform=platform,
        request_keys=partial(request_app_keys, trust=trust),
        clock=lambda: datetime.now(UTC),
        random=secrets.token_bytes,
        request_seed=_seed_call(pki, arguments),
    )
    booted = boot(shared, around, work_dir=arguments.state)
    _keep_instance_info(booted, arguments.state)

    agent = GuestAgent(platform, booted, trust=trust)
    listener = Listener(agent_app(agent), unix_socket=arguments.socket, unix_mode=SOCKET_MODE)
    with _legacy_agent(LegacyAgent(agent, booted.provided.keys), arguments.tappd_socket):
        _serve(listener, {"ready": True, **_identity(booted)})


def _kms_trust(pki: SimulatedPki, arguments: argparse.Namespace) -> KmsTrust:
    """A KMS must then show a quote under the root that this machine's own platform has."""
    return KmsTrust(TrustedRoots((simulated_root(pki.root_der),)), DirectoryCollateral(arguments.pki))


@contextmanager
def _legacy_agent(agent: LegacyAgent, socket: Path | None) -> Iterator[None]:
    """Serve it beside the other, if it is wanted."""
    if socket is None:
        yield
        return
    with Listener(legacy_app(agent), unix_socket=socket, unix_mode=SOCKET_MODE).running():
        yield


def _seed_call(pki: SimulatedPki, arguments: argparse.Namespace) -> SeedCall | None:
    """The key provider must show a quote of the listed enclave, on the same platform."""
    if arguments.key_provider is None:
        return None
    host, _, port = arguments.key_provider.rpartition(":")
    if not host or not port.isdecimal() or arguments.enclave is None:
        raise InputError(f"--key-provider: want HOST:PORT, and --enclave, got {arguments.key_provider[:80]!r}")
    policy = VerificationPolicy(mr_enclaves=frozenset({Digest32.from_hex(arguments.enclave)}))
    collateral = EnclaveCollateral(pki, lambda: datetime.now(UTC))
    trust = KmsTrust(TrustedRoots((simulated_root(pki.root_der),)), collateral, policy)
    return partial(request_seed, KeyProviderClient(host, int(port)).ask, trust=trust)


def _serve(listener: Listener, ready: Mapping[str, object]) -> None:
    """Say *ready* once the listener answers; return after SIGTERM or SIGINT, with the socket removed."""
    stopped = _stopped_by_signal()
    with listener.running():
        _say(ready)
        stopped.wait()


def _stopped_by_signal() -> threading.Event:
    """Set by SIGTERM and SIGINT."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopped.set())
    return stopped


def _take_host_shared(source: Path, state: Path) -> HostShared:
    """Copy what the host shares; the seed of the instance id comes from the state of an earlier boot, if any."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    copied = state / ".host-shared"
    copy_host_shared(source, copied)
    shared = load_host_shared(copied)
    kept = load_instance_info(state).instance_id_seed
    if kept is None:
        return shared
    return replace(shared, instance_info=replace(shared.instance_info, instance_id_seed=kept))


def _keep_instance_info(booted: Booted, state: Path) -> None:
    text = serialise_instance_info(booted.instance_id_seed, booted.instance_id, booted.app_id)
    try:
        replace_private(state / INSTANCE_INFO, text.encode())
    except OSError as exc:
        raise ConfigError(f"{INSTANCE_INFO}: cannot be written: {exc.strerror}") from exc


def _identity(booted: Booted) -> dict[str, str]:
    return {
        "app_id": booted.app_id.hex(),
        "compose_hash": booted.app_compose.compose_hash.hex(),
        "instance_id": (booted.instance_id or b"").hex(),
        "key_provider": booted.app_compose.key_provider,
    }


def _refusal(error: DstackError) -> Mapping[str, object]:
    refusal: dict[str, object] = {"error": str(error), "kind": type(error).__name__}
    if isinstance(error, KeyReleaseDeniedError):
        refusal |= {"rule": error.rule, "block": error.block}
    return refusal


def _say(answer: Mapping[str, object]) -> None:
    """One line of JSON on standard output, for whoever started this."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dstack.simulator", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    pki = commands.add_parser("pki", help="generate a platform: keys, certificates, collateral")
    pki.add_argument("folder", type=Path, help="where it is kept")
    pki.set_defaults(run=make_pki)

    image = commands.add_parser("image", help="write an OS image of stand-in files")
    image.add_argument("folder", type=Path, help="where its files go")
    image.add_argument("--name", default=DEFAULT_NAME, help="what the image calls itself")
    image.add_argument("--sys-config", type=Path, help="write the .sys-config.json of a machine that runs it here")
    image.set_defaults(run=make_os_image)

    collateral = commands.add_parser("collateral", help="write fresh collateral of a platform")
    collateral.add_argument("--pki", type=Path, required=True, help=_PKI)
    collateral.add_argument("--out", type=Path, required=True, help="the file, JSON")
    collateral.set_defaults(run=make_collateral)

    pccs = commands.add_parser("pccs", help="serve a platform's collateral as Intel's service does, on loopback")
    pccs.add_argument("--pki", type=Path, required=True, help=_PKI)
    pccs.add_argument("--port", type=int, default=0, help="0 for any free one")
    pccs.add_argument("--delay", type=float, default=0.0, help="seconds before each answer")
    pccs.add_argument("--status", type=int, default=200, help="other than 200: answer with it and nothing else")
    pccs.add_argument("--evaluation-number", type=int, default=EVALUATION_NUMBER, help="of TCB info and QE identity")
    pccs.add_argument("--crl-number", type=int, default=1, help="of both CRLs")
    pccs.add_argument("--wrong-signer", action="store_true", help="sign with a key that may not; must be refused")
    pccs.add_argument("--crl-form", choices=["der", "pem", "hex"], default="der", help="how CRLs are sent")
    pccs.set_defaults(run=run_pccs)

    provider = commands.add_parser(
        "key-provider", help="give machines of a platform their keys, as an SGX enclave does"
    )
    provider.add_argument("--pki", type=Path, required=True, help=_PKI)
    provider.add_argument("--enclave", required=True, help="MRENCLAVE that its quotes carry, in hexadecimal")
    provider.set_defaults(run=run_key_provider)

    cvm = commands.add_parser("cvm", help="boot a machine and serve its guest agent")
    for name, meaning in _CVM_FILES.items():
        cvm.add_argument(name, type=Path, required=True, help=meaning)
    cvm.add_argument(
        "--app-id",
        metavar="ADDRESS",
        help="of its app: the contract's address; default: what .instance_info says, else of the compose hash",
    )
    statuses = [each.value for each in TcbStatus]
    cvm.add_argument(
        "--tcb-status",
        metavar="STATUS",
        default=TcbStatus.UP_TO_DATE.value,
        choices=statuses,
        help=f"of its platform: {', '.join(statuses)}",
    )
    cvm.add_argument("--debug", action="store_true", help="set the DEBUG attribute; verifiers must refuse the quotes")
    cvm.add_argument("--verify-kms", action="store_true", help="demand a quote of the KMS, under this platform's root")
    cvm.add_argument("--key-provider", metavar="HOST:PORT", help="of an app whose keys a local provider gives")
    cvm.add_argument("--enclave", help="MRENCLAVE of the only provider whose keys are taken, in hexadecimal")
    cvm.add_argument("--tappd-socket", type=Path, help="serve the legacy agent here as well")
    cvm.add_argument("--root-out", type=Path, help="write the platform's root certificate (DER) here")
    cvm.set_defaults(run=run_cvm)
    return parser


if __name__ == "__main__":
    sys.exit(main())
