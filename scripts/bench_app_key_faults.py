"""GetAppKey while three of seven chain endpoints misbehave: wrong answers, and how soon a denial ends grants.

Whole requests, each over a TLS connection of its own with the caller's RA-TLS certificate, to a KMS that is a program
of its own. The right answer to each caller is computed here: the owners allow some, and their keys follow from the
KMS's root keys. Used by bench.py.
"""

from __future__ import annotations

import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from app_key_load import COULD_NOT_ASK, said
from app_key_site import Caller, Site, load_figures
from prometheus_client.parser import text_string_to_metric_families

from dstack.devnet.fault_run import Faults, Tally, misbehaving
from dstack.devnet.http import call
from dstack.keys.derivation import RootKeys, derive_app_keys
from dstack.keys.pem import load_private_key, p256_scalar
from dstack.policy import Rule
from dstack.values import AppId, ComposeHash, InstanceId
from dstack.wire.kms import AppKeyResponse
from dstack.wire.message import to_json
from kms.roots import ROOT_CA_KEY, ROOT_K256_KEY

REQUESTS = int(os.environ.get("BENCH_REQUESTS", "10000"))
DENIALS = int(os.environ.get("BENCH_DENIALS", "5"))
ENDPOINTS = 7
CALLERS = 100
_ALLOWED, _OTHER = ComposeHash(b"\xc0" * 32), ComposeHash(b"\xc1" * 32)
_DENIED = f"denied {Rule.COMPOSE_HASH.name}"
_UNREGISTERED = AppId(b"\xa0" * 20)
_BLOCK_SECONDS = 0.5
_START_SECONDS = 60.0
_BETWEEN_DENIALS = 0.7
_AFTER_DENIALS = 4.0

Samples = list[tuple[Mapping[str, str], int]]


def measure() -> dict[str, Any]:
    """Ask `REQUESTS` times, half of them for callers that the chain denies; then deny `DENIALS` versions.

    Returns:
        What came of the requests (`Tally.document`), `per_second`, `p50` and `p99` in milliseconds; `chain_readings`:
        how many of the KMS's questions went to the endpoints, and how many were answered from the block it keeps;
        `endpoint_faults`: what it found wrong with which of them. `denials`: what came of the requests meanwhile, and
        `last_grant_after_seconds`, from before the denial was sent to the last answer with keys: median and most.
    """
    versions = [ComposeHash(bytes([number + 1]) * 32) for number in range(DENIALS)]
    with ExitStack() as cleanup:
        site = Site.start(cleanup, endpoint_count=ENDPOINTS)
        site.allow({site.governance.app: [_ALLOWED, *versions]})
        chain = site.governance.chain
        with misbehaving(site.endpoints, change=chain.mine, change_seconds=_BLOCK_SECONDS) as faults:
            return {**_requests(site, faults), "denials": _denials(site, versions, faults)}


def _requests(site: Site, faults: Faults) -> dict[str, Any]:
    callers = _callers(site.governance.app)
    right = [frozenset([_right_answer(site, caller)]) for caller in callers]
    identities = site.identities(callers)
    readings, cut = _readings(site), faults.cut
    figures = load_figures(site.start_load(identities, "fresh", count=REQUESTS))
    return {
        "endpoints": f"{ENDPOINTS}: one lies, one hangs, one is killed and started again, {ENDPOINTS - 3} are honest",
        "requests": figures["count"],
        **_tally(figures, right, faults.cut - cut).document(),
        "per_second": round(figures["count"] / figures["seconds"], 1),
        "p50": figures["p50"],
        "p99": figures["p99"],
        "chain_readings": dict(_readings(site) - readings),
        # Since its start: an endpoint that it found at fault before the first request is not asked for a while.
        "endpoint_faults": dict(_endpoint_faults(site)),
    }


def _denials(site: Site, versions: Sequence[ComposeHash], faults: Faults) -> dict[str, Any]:
    app = site.governance.app
    callers = [Caller(app, version, InstanceId(version[:20])) for version in versions]
    keys = [_keys(site, caller) for caller in callers]
    granted_before, cut = _granted(site), faults.cut
    load = site.start_load(site.identities(callers), "fresh")
    deadline = time.monotonic() + _START_SECONDS
    while _granted(site) - granted_before < 2 * len(callers):
        if load.poll() is not None or time.monotonic() > deadline:
            load.terminate()
            raise SystemExit(f"denials: want each version granted within {_START_SECONDS:.0f} s, got too few grants")
        time.sleep(0.1)
    denied_at = []
    for version in versions:
        denied_at.append(time.monotonic())
        site.governance.deny_compose_hash(app, version, site.world)
        time.sleep(_BETWEEN_DENIALS)
    time.sleep(_AFTER_DENIALS)
    load.terminate()
    figures = load_figures(load)

    last = {(caller, answer): at for caller, answer, _, at in figures["answers"]}
    after = [max(0.0, last.get((number, keys[number]), 0.0) - at) for number, at in enumerate(denied_at)]
    right = [frozenset([granted, _DENIED]) for granted in keys]
    return {
        "denied": len(versions),
        "last_answer_is_denial": sum(
            last.get((number, _DENIED), 0.0) > last.get((number, granted), 0.0) for number, granted in enumerate(keys)
        ),
        "last_grant_after_seconds": {"median": round(statistics.median(after), 2), "most": round(max(after), 2)},
        **_tally(figures, right, faults.cut - cut).document(),
    }


def _callers(app: AppId) -> list[Caller]:
    """By turns one that is allowed, and one that is not: in another version, or of an app that nobody registered."""
    kinds = ((app, _ALLOWED), (app, _OTHER), (app, _ALLOWED), (_UNREGISTERED, _ALLOWED))
    # Each is an instance of its own, so that the chain is asked about each.
    return [
        Caller(*kinds[number % len(kinds)], InstanceId(number.to_bytes(20, "big"))) for number in range(1, CALLERS + 1)
    ]


def _right_answer(site: Site, caller: Caller) -> str:
    if caller.app_id != site.governance.app:
        return f"denied {Rule.APP_REGISTERED.name}"
    return _keys(site, caller) if caller.compose_hash == _ALLOWED else _DENIED


def _keys(site: Site, caller: Caller) -> str:
    """The answer that holds its keys, as `app_key_load.said` puts it."""
    kept = site.world.secret / "kms-certs"
    ca = p256_scalar(load_private_key((kept / ROOT_CA_KEY).read_bytes()))
    keys = derive_app_keys(RootKeys(ca, (kept / ROOT_K256_KEY).read_bytes()), caller.app_id, caller.instance_id)
    answer = AppKeyResponse(
        ca_cert=site.temporary.ca_cert,
        disk_crypt_key=keys.disk_crypt_key,
        env_crypt_key=keys.env_crypt_key,
        k256_key=keys.k256_key,
        k256_signature=keys.k256_signature,
        os_image_hash=site.world.image.os_image_hash,
    )
    return said(200, to_json(answer).encode())


def _tally(figures: Mapping[str, Any], right: Sequence[frozenset[str]], cut: int) -> Tally:
    """The answers beside the right ones of each caller."""
    tally = Tally(cut=cut)
    for caller, answer, times, _ in figures["answers"]:
        if answer == COULD_NOT_ASK:
            tally.unavailable += times
        elif answer in right[caller]:
            tally.right["denied" if answer.startswith("denied ") else "granted"] += times
        else:
            tally.wrong += [f"caller {caller}: {answer}"] * times
    return tally


def _readings(site: Site) -> Counter[str]:
    return _by(lambda labels: labels["outcome"], _counted(site, "dstack_chain_readings_total"))


def _endpoint_faults(site: Site) -> Counter[str]:
    """What the KMS found wrong with endpoints, by what they do."""
    names = dict(zip((endpoint.url for endpoint in site.endpoints), ("lying", "hanging", "killed"), strict=False))
    faults = _counted(site, "dstack_chain_endpoint_faults_total")
    return _by(lambda labels: names.get(labels["endpoint"], "honest"), faults)


def _granted(site: Site) -> int:
    return sum(
        count
        for labels, count in _counted(site, "dstack_kms_decisions_total")
        if (labels["subject"], labels["outcome"]) == ("app", "granted")
    )


def _by(name: Callable[[Mapping[str, str]], str], counted: Samples) -> Counter[str]:
    found: Counter[str] = Counter()
    for labels, count in counted:
        found[name(labels)] += count
    return found


def _counted(site: Site, name: str) -> Samples:
    """What the KMS counts under this name."""
    text = call(f"{site.kms.url}/metrics", verify=False).text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return [(sample.labels, int(sample.value)) for sample in samples if sample.name == name]
