"""Quote verification: our two layers beside the quote library alone, beside P-256, and over two processes.

Every quote is another one, so that nothing of a quote itself is remembered. Both verifiers have the collateral parsed;
what is measured against each other takes turns, because other work on the machine comes and goes.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import cycle
from operator import truediv
from typing import Any

import dcap_qvl
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.collateral import serialise_collateral
from dstack.attestation.content_cache import ContentCache
from dstack.attestation.roots import TrustedRoots, simulated_root
from dstack.attestation.verification_policy import STRICT
from dstack.attestation.verify import verify_quote
from dstack.simulator.certificates import PCK, PCK_AUTHORITY, Issuer, issue_certificate, subject_name
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.transport.verification_pool import VerificationPool
from dstack.values import Register, ReportData

_QUOTES, _PLATFORMS = 256, 64
_CONCURRENT, _ROUNDS = 1000, 5
_TICK_SECONDS = 0.001
_SLICE = 64
# Of the quote itself: body, QE report, PCK certificate, PCK CA. The last three are the platform's.
_SIGNATURES, _OWN_SIGNATURES = 4, 1


def measure(seconds: float) -> dict[str, Any]:
    """All figures; each takes *seconds* or somewhat more."""
    at = datetime.now(UTC).replace(microsecond=0)
    pki = SimulatedPki.generate(at)
    quotes = [_quote(pki, number) for number in range(_QUOTES)]
    platforms = [_quote(_platform(pki, at), number) for number in range(_PLATFORMS)]
    collateral, roots = pki.collateral(), TrustedRoots((simulated_root(pki.root_der),))
    statements, now = dcap_qvl.QuoteCollateralV3.from_json(serialise_collateral(collateral)), int(at.timestamp())
    cache = ContentCache()
    known, unknown, others = cycle(quotes), cycle(quotes), cycle(platforms)

    def forgetting() -> None:
        """Remembers the collateral, and meets every platform for the first time."""
        verify_quote(next(others), collateral, roots=roots, at=at, cache=forgetful)

    # Room for the collateral, one platform and its match.
    forgetful = ContentCache(capacity=3)
    rates = _in_turns(
        {
            "library": lambda: dcap_qvl.verify_with_root_ca(next(known), statements, pki.root_der, now),
            "ours": lambda: verify_quote(next(known), collateral, roots=roots, at=at, cache=cache),
            "ours_new_platform": forgetting,
            "ours_nothing_remembered": lambda: verify_quote(next(unknown), collateral, roots=roots, at=at),
            "p256": _p256(),
        },
        seconds,
    )
    library, ours = rates["library"], rates["ours"]
    return {
        "unit": "verifications per second on one core; times = our time / the library's",
        "ours": round(ours, 1),
        "limit": round(library, 1),
        "ratio": round(ours / library, 3),
        "times": round(library / ours, 3),
        "times_new_platform": round(library / rates["ours_new_platform"], 3),
        "times_nothing_remembered": round(library / rates["ours_nothing_remembered"], 3),
        "p256_verify": round(rates["p256"], 1),
        "ratio_to_p256_platform_known": round(ours / (rates["p256"] / _OWN_SIGNATURES), 3),
        "ratio_to_p256_platform_new": round(rates["ours_new_platform"] / (rates["p256"] / _SIGNATURES), 3),
        "two_processes": _scaling_alone(),
    }


def _in_turns(operations: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Operations per second of processor time, so that what else runs on the machine counts less.

    All take turns in short slices; of each, the median slice beside the library's slice of the same turn counts.
    """
    slices: dict[str, list[float]] = {name: [] for name in operations}
    for operation in operations.values():
        operation()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds * len(operations):
        for name, operation in operations.items():
            slices[name].append(_slice(operation))
    library = statistics.median(slices["library"])
    return {name: library * statistics.median(map(truediv, rates, slices["library"])) for name, rates in slices.items()}


def _slice(operation: Callable[[], object]) -> float:
    began = time.thread_time()
    for _ in range(_SLICE):
        operation()
    return _SLICE / (time.thread_time() - began)


def _scaling_alone() -> dict[str, Any]:
    """In a program that has loaded nothing else: garbage collection of whatever this one holds stops a loop too."""
    ended = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def _scaling() -> dict[str, Any]:
    """Two workers against one, and how late the event loop of whoever asks comes meanwhile.

    One and two workers take turns, and nobody looks on while rates are measured: who looks on needs a core as well.
    """
    at = datetime.now(UTC).replace(microsecond=0)
    pki = SimulatedPki.generate(at)
    collateral, roots = pki.collateral(), TrustedRoots((simulated_root(pki.root_der),))
    quotes = [_quote(pki, number) for number in range(_QUOTES)]
    batch = [quote for _, quote in zip(range(_CONCURRENT), cycle(quotes), strict=False)]

    async def ask(pool: VerificationPool) -> float:
        began = time.perf_counter()
        await asyncio.gather(*(pool.verify_async(quote, collateral, at=at) for quote in batch))
        return _CONCURRENT / (time.perf_counter() - began)

    async def stall(pool: VerificationPool) -> float:
        late: list[float] = []
        ticker = asyncio.create_task(_tick(late))
        await ask(pool)
        ticker.cancel()
        return max(late)

    with (
        VerificationPool(roots=roots, policy=STRICT, workers=1) as one,
        VerificationPool(roots=roots, policy=STRICT, workers=2) as two,
    ):
        pools = {"one_worker": one, "two_workers": two}
        for pool in pools.values():
            asyncio.run(ask(pool))
        rounds = [{name: asyncio.run(ask(pool)) for name, pool in pools.items()} for _ in range(_ROUNDS)]
        stalls = [asyncio.run(stall(two)) for _ in range(_ROUNDS)]
    rates = {name: statistics.median(each[name] for each in rounds) for name in pools}
    return {
        "concurrent": _CONCURRENT,
        **{name: round(rate, 1) for name, rate in rates.items()},
        "ratio": round(statistics.median(each["two_workers"] / each["one_worker"] for each in rounds), 3),
        "longest_stalls_of_the_event_loop_ms": [round(1000 * each, 1) for each in sorted(stalls)],
    }


async def _tick(late: list[float]) -> None:
    """How much later than after a millisecond the event loop comes back, again and again."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(_TICK_SECONDS)
        late.append(time.perf_counter() - began - _TICK_SECONDS)


def _quote(pki: SimulatedPki, number: int) -> bytes:
    registers = TdRegisters(*(Register(bytes([index]) * 48) for index in range(5)))
    return make_quote(pki, registers=registers, report_data=ReportData(number.to_bytes(64, "big")))


def _platform(pki: SimulatedPki, at: datetime) -> SimulatedPki:
    """Another platform of the same maker and model: its own certificate and attestation key."""
    keys = replace(
        pki.keys, pck=ec.generate_private_key(ec.SECP256R1()), attestation=ec.generate_private_key(ec.SECP256R1())
    )
    issuer = Issuer(subject_name(PCK_AUTHORITY), keys.pck_authority)
    certificate = issue_certificate(PCK, keys.pck.public_key(), issuer, at=at, platform=pki.platform)
    return replace(pki, keys=keys, pck=certificate)


def _p256() -> Callable[[], object]:
    key, message, algorithm = ec.generate_private_key(ec.SECP256R1()), bytes(632), ec.ECDSA(hashes.SHA256())
    signature, public = key.sign(message, algorithm), key.public_key()
    return lambda: public.verify(signature, message, algorithm)


if __name__ == "__main__":
    print(json.dumps(_scaling()))
