"""GetAppKey end to end: how many, how fast, on how much of a core, and where the time goes. Used by bench.py.

The KMS, its chain and the load are programs of their own on this machine, so they share its cores: the rates are what
this machine does with all of them. What the KMS itself needs is in `per_core`: requests for each second of processor
time that the KMS and its workers used.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app_key_site import Caller, Site, load_figures
from cryptography.hazmat.primitives.asymmetric import ec

from dstack.attestation.appraise import appraise
from dstack.attestation.content_cache import ContentCache
from dstack.attestation.quote import parse_quote
from dstack.attestation.report_data import ratls_report_data
from dstack.attestation.roots import TrustedRoots, simulated_root
from dstack.attestation.verify import verify_quote
from dstack.chain.endpoints import Endpoints
from dstack.chain.kms_auth import KmsAuthReader
from dstack.guest.platform import platform_evidence
from dstack.keys.derivation import RootKeys, derive_app_keys
from dstack.keys.pem import spki_der
from dstack.policy import boot_info
from dstack.transport.collateral import DirectoryCollateral
from dstack.values import ComposeHash, InstanceId

IDENTITIES = 100
SOAK_SECONDS = float(os.environ.get("BENCH_SOAK_SECONDS", "10"))
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Bench:
    """A site, and many certificates of one allowed machine of it."""

    site: Site
    identities: Sequence[str]

    def load(self, mode: str, seconds: float, *, rate: float | None = None) -> dict[str, Any]:
        """Figures of one load, with the KMS's processor time."""
        pid = self.site.kms.program.process.pid
        before, before_main = processor_seconds(pid), processor_seconds(pid, with_workers=False)
        load_before = _ended_programs_seconds()
        figures = load_figures(self.site.start_load(self.identities, mode, seconds=seconds, rate=rate))
        load = _ended_programs_seconds() - load_before
        used = processor_seconds(pid) - before
        main = processor_seconds(pid, with_workers=False) - before_main
        said = {answer for _, answer, _, _ in figures.pop("answers")}
        if len(said) != 1 or not min(said).startswith("keys "):
            raise SystemExit(f"load: want one machine's keys as the answer to all, got {sorted(said)}")
        count, elapsed = figures.pop("count"), figures.pop("seconds")
        own = {
            "milliseconds_of_processor": round(used / count * 1000, 2),
            "of_them_in_workers": round((used - main) / count * 1000, 2),
            "per_core": round(count / used, 1),
            # The load has the same cores: without it the KMS could do that much more.
            "milliseconds_of_the_load": round(load / count * 1000, 2),
        }
        return {"per_second": round(count / elapsed, 1), **figures, **own}


def measure(seconds: float) -> dict[str, Any]:
    """Start a chain and a KMS, and ask for an app's keys in every way that counts.

    Returns:
        `kept` and `fresh`: as fast as they come; `half_load`: kept, at half that rate; each with `per_second`, `p50`,
        `p99` (milliseconds), `milliseconds_of_processor`, `per_core` and `milliseconds_of_the_load`. `parts`:
        milliseconds of single steps. `shares`: of the processor time of a request over a new connection; they add up.
        `soak`: resident megabytes before and after.
    """
    with ExitStack() as cleanup:
        site = Site.start(cleanup)
        caller = Caller(site.governance.app, ComposeHash(b"\xc0" * 32), InstanceId(b"\x1d" * 20))
        site.allow({caller.app_id: [caller.compose_hash]})
        bench = Bench(site, site.identities([caller] * IDENTITIES))
        bench.load("fresh", min(1.0, seconds))
        kept, fresh = bench.load("kept", seconds), bench.load("fresh", seconds)
        parts = _parts(site, caller, seconds)
        return {
            "kept": kept,
            "fresh": fresh,
            "half_load": bench.load("kept", seconds, rate=kept["per_second"] / 2),
            "parts": parts,
            "shares": _shares(kept, fresh, parts),
            "soak": _soak(bench),
            "load_average": os.getloadavg()[0],
        }


def _parts(site: Site, caller: Caller, seconds: float) -> dict[str, float]:
    """Milliseconds (medians) of single steps of one request, each alone in this process."""
    world, governance = site.world, site.governance
    report_data = ratls_report_data(spki_der(ec.generate_private_key(ec.SECP256R1())))
    evidence = platform_evidence(caller.platform(world), report_data)
    roots = TrustedRoots((simulated_root(world.pki.root_der),))
    collateral = DirectoryCollateral(world.platform).collateral_for(parse_quote(evidence.quote))
    verified = verify_quote(evidence.quote, collateral, roots=roots, at=datetime.now(UTC))
    boot = boot_info(appraise(evidence, verified, expected_report_data=report_data))
    asked = Endpoints([governance.rpc_url], block_tag="latest", head_seconds=0)
    kept = Endpoints([governance.rpc_url], block_tag="latest", head_seconds=1)
    root = RootKeys(ca=bytes(31) + b"\1", k256=bytes(31) + b"\2")
    cache = ContentCache()
    steps: dict[str, Callable[[], object]] = {
        "collateral": lambda: DirectoryCollateral(world.platform).collateral_for(parse_quote(evidence.quote)),
        "quote_verification": lambda: verify_quote(
            evidence.quote, collateral, roots=roots, at=datetime.now(UTC), cache=cache
        ),
        "appraisal": lambda: appraise(evidence, verified, expected_report_data=report_data),
        "chain_asked": lambda: KmsAuthReader(asked, governance.kms_auth).authorize_app(boot),
        "chain_kept": lambda: KmsAuthReader(kept, governance.kms_auth).authorize_app(boot),
        "derivation": lambda: derive_app_keys(root, caller.app_id, caller.instance_id),
    }
    figures = {name: round(_median(step, seconds / 4), 3) for name, step in steps.items()}
    asked.close()
    kept.close()
    return figures


def _shares(kept: dict[str, Any], fresh: dict[str, Any], parts: dict[str, float]) -> dict[str, Any]:
    """Milliseconds and percent of a request over a new connection; what no part accounts for is `rest`.

    The rest is HTTP, the decision log and its signature, logs, and threads that wait for each other.
    """
    whole = fresh["milliseconds_of_processor"]
    shares = {
        # What a new connection costs beyond a kept one.
        "tls_handshake": whole - kept["milliseconds_of_processor"],
        # Measured in the workers, where nothing else happens.
        "quote_verification": fresh["of_them_in_workers"],
        "collateral": parts["collateral"],
        "appraisal": parts["appraisal"],
        # About the KMS itself, and about the app.
        "chain": 2 * parts["chain_kept"],
        "derivation": parts["derivation"],
    }
    shares["rest"] = whole - sum(shares.values())
    return {
        "milliseconds": {name: round(value, 2) for name, value in shares.items()},
        "percent": {name: round(100 * value / whole, 1) for name, value in shares.items()},
    }


def _soak(bench: Bench) -> dict[str, Any]:
    pid = bench.site.kms.program.process.pid
    before = resident_megabytes(pid)
    figures = bench.load("kept", SOAK_SECONDS)
    count = round(figures["per_second"] * SOAK_SECONDS)
    return {"seconds": SOAK_SECONDS, "requests": count, "before": before, "after": resident_megabytes(pid)}


def processor_seconds(pid: int, *, with_workers: bool = True) -> float:
    """Processor time of a program, and of everything that it started."""
    fields = [_stat(one) for one in (_family(pid) if with_workers else [pid])]
    return sum(int(one[11]) + int(one[12]) for one in fields) / _TICKS


def _ended_programs_seconds() -> float:
    """Processor time of programs that this one started, and that ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def resident_megabytes(pid: int) -> float:
    """Resident memory of a program and everything that it started."""
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in _family(pid))
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def _family(pid: int) -> list[int]:
    """A process and its children's children."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int(_stat(int(folder.name))[1])
        except OSError:
            continue
    family = [pid]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _median(operation: Callable[[], object], seconds: float) -> float:
    """Median milliseconds of an operation, after one to warm up."""
    operation()
    taken: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        before = time.perf_counter()
        operation()
        taken.append(time.perf_counter() - before)
    return statistics.median(taken) * 1000
