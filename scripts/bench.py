"""Prints our rates beside the limits of this machine, measured in the same run, as one JSON document: `[FIGURE...]`.

Each figure holds `ours` and `limit` in operations per second and their `ratio`. Nothing here passes or fails.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import bench_app_key
import bench_app_key_faults
import bench_chain
import bench_handover
import bench_measurement
import bench_verification
import coincurve
from Crypto.Hash import keccak

from dstack.keys.derivation import RootKeys, derive_app_keys
from dstack.measurement.compose import app_compose_from_docker_compose, compose_hash, default_app_id, parse_app_compose
from dstack.measurement.event_log import Event, replay_event_log
from dstack.measurement.identities import derive_instance_id
from dstack.measurement.rtmr3 import OUR_SEQUENCE, BootInputs, boot_events, predict_rtmr3
from dstack.values import AppId, InstanceId, OsImageHash, Register

SECONDS = float(os.environ.get("BENCH_SECONDS", "1"))
_EVENTS = 30


def rate(operation: Callable[[], object]) -> float:
    """Operations per second, over about `SECONDS`, after one to warm up."""
    operation()
    count, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < SECONDS:
        operation()
        count += 1
    return count / elapsed


def figure(ours: Callable[[], object], limit: Callable[[], object]) -> dict[str, Any]:
    """Both rates, and what part of the limit we reach."""
    our_rate, limit_rate = rate(ours), rate(limit)
    return {"ours": round(our_rate, 1), "limit": round(limit_rate, 1), "ratio": round(our_rate / limit_rate, 3)}


def replay_figure() -> dict[str, Any]:
    """A log of 30 boot events against 30 bare SHA-384 of 96 bytes."""
    digests = [hashlib.sha384(bytes([number])).digest() for number in range(_EVENTS)]
    events = tuple(Event(number % 3, 1, digest, "", b"") for number, digest in enumerate(digests))

    def bare() -> None:
        register = bytes(48)
        for digest in digests:
            register = hashlib.sha384(register + digest).digest()

    return figure(lambda: replay_event_log(events), bare)


def rtmr3_figure() -> dict[str, Any]:
    """app-compose.json to RTMR3, against hashing the file once and two SHA-384 for each of the nine events."""
    docker_compose = files("dstack.devnet").joinpath("docker-compose.yaml").read_bytes()
    raw = app_compose_from_docker_compose(docker_compose, name="bench", key_provider="kms")

    def ours() -> Register:
        compose = parse_app_compose(raw)
        identity = compose_hash(raw)
        app_id = default_app_id(identity)
        inputs = BootInputs(
            app_id=app_id,
            compose_hash=identity,
            instance_id=derive_instance_id(bytes(20), app_id),
            key_provider=compose.key_provider,
            key_provider_id=bytes(91),
            os_image_hash=OsImageHash(bytes(32)),
            storage_fs="zfs",
        )
        return predict_rtmr3(boot_events(OUR_SEQUENCE, inputs))

    def bare() -> None:
        hashlib.sha256(raw).digest()
        register = bytes(48)
        for _ in range(9):
            register = hashlib.sha384(register + hashlib.sha384(raw[:60]).digest()).digest()

    return figure(ours, bare)


def quote_figure() -> dict[str, Any]:
    """Our two layers against the library alone, which is the second of them, and against P-256."""
    return bench_verification.measure(SECONDS)


def derivation_figure() -> dict[str, Any]:
    """All keys of an app, against three HKDF and one recoverable signature with bare hmac and coincurve."""
    root = RootKeys(ca=bytes(31) + b"\1", k256=bytes(31) + b"\2")
    app_id, instance_id = AppId(bytes(20)), InstanceId(bytes([1]) * 20)
    signer = coincurve.PrivateKey(bytes(31) + b"\2")

    def bare() -> None:
        for _ in range(3):
            secret = hmac.digest(b"RATLS", bytes(32), "sha256")
            hmac.digest(secret, bytes(56) + b"\1", "sha256")
        digest = keccak.new(digest_bits=256, data=bytes(71)).digest()
        signer.sign_recoverable(digest, hasher=None)

    return figure(lambda: derive_app_keys(root, app_id, instance_id), bare)


def get_app_key_figure() -> dict[str, Any]:
    """A KMS and a chain of its own, under load from another process."""
    return {"unit": "milliseconds, and requests per second", **bench_app_key.measure(max(SECONDS, 3.0))}


def chain_figure() -> dict[str, Any]:
    """Decisions of a chain among endpoints that misbehave."""
    return bench_chain.measure()


def app_key_faults_figure() -> dict[str, Any]:
    """Whole requests to a KMS of its own, among endpoints that misbehave; every answer is known beforehand."""
    return {
        "unit": "requests, milliseconds; goals: wrong 0, last grant at most 2 s after a denial",
        **bench_app_key_faults.measure(),
    }


def image_figure() -> dict[str, Any]:
    """A whole image measured; the limit is hashing its bytes once."""
    return {
        "unit": "milliseconds, medians; ratio = measured / hash_once, goal at most 1.5",
        **bench_measurement.measure(SECONDS),
    }


def handover_figure() -> dict[str, Any]:
    """1 GiB (or BENCH_HANDOVER_MIB) from node to node; the slower limit counts."""
    size = int(os.environ.get("BENCH_HANDOVER_MIB", "1024"))
    return {"unit": "MB/s; ratio to the slower limit, goal 0.4; MiB grown, goal 64", **bench_handover.measure(size)}


FIGURES: dict[str, Callable[[], dict[str, Any]]] = {
    "rtmr_replay_30_events": replay_figure,
    "rtmr3_from_app_compose": rtmr3_figure,
    "image_measurement": image_figure,
    "quote_verification": quote_figure,
    "kms_key_derivation": derivation_figure,
    "get_app_key": get_app_key_figure,
    "chain_among_faults": chain_figure,
    "get_app_key_among_faults": app_key_faults_figure,
    "handover_1_gib": handover_figure,
}


def main() -> int:
    """Measure what is named, or everything, and print the document; what is being measured goes to standard error."""
    names = sys.argv[1:] or list(FIGURES)
    if unknown := sorted(set(names) - set(FIGURES)):
        print(f"bench: want some of {', '.join(FIGURES)}; got {unknown[0]}", file=sys.stderr)
        return 2
    document: dict[str, Any] = {"unit": "operations per second; ratio = ours / limit"}
    for name in names:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        document[name] = FIGURES[name]()
    print(json.dumps(document, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
