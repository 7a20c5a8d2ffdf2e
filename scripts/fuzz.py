"""Fuzzes every parser for a while: `fuzz.py --seconds N [TARGET...]`, behind `make fuzz SECONDS=N`.

Each target has a process of its own, which starts from the seeds and from what earlier runs found interesting
(`.fuzz/corpus`). A finding is kept in tests/fuzz/found/, where the ordinary tests replay it for ever.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.seeds import write_seeds
from tests.fuzz.targets import LONGEST_INPUT, TARGETS

ROOT = Path(__file__).resolve().parent.parent
FOUND = ROOT / "tests" / "fuzz" / "found"
CORPUS = ROOT / ".fuzz" / "corpus"
LOGS = ROOT / ".fuzz" / "logs"
MEMORY_MIB = 256
# Wall time after which an input counts as hanging; the worker itself counts a second of processor time.
_HANG_SECONDS = 30
_LOCK, _STOPPED = threading.Lock(), threading.Event()
_RUNNING: list[subprocess.Popen[bytes]] = []
_WORDS = ROOT / "tests" / "fuzz" / "words.dict"


@dataclass(frozen=True)
class Outcome:
    """What came of one target: inputs tried, corners of the code reached, and the files of findings."""

    name: str
    seconds: float
    runs: int
    coverage: int
    memory_mib: int
    findings: tuple[Path, ...]
    failed: bool


def main() -> int:
    """Fuzz, print a table; 1 if anything was found."""
    arguments = _parser().parse_args()
    unknown = sorted(set(arguments.targets) - TARGETS.keys())
    if unknown:
        sys.stderr.write(f"fuzz: want targets among {', '.join(TARGETS)}; got {', '.join(unknown)}\n")
        return 2
    names = arguments.targets or list(TARGETS)
    print(f"fuzzing {len(names)} parsers, {arguments.seconds} s each, {arguments.jobs} at a time", flush=True)
    outcomes = []
    try:
        for outcome in _fuzz(names, arguments.seconds, arguments.jobs):
            outcomes.append(outcome)
            print(f"  {len(outcomes):2}/{len(names)}  {_line(outcome)}", flush=True)
    except KeyboardInterrupt:
        sys.stderr.write("fuzz: interrupted\n")
        return 130
    bad = [outcome for outcome in outcomes if outcome.failed]
    for outcome in bad:
        _explain(outcome)
    print(f"{sum(outcome.runs for outcome in outcomes)} inputs, {len(bad)} of {len(outcomes)} parsers with a finding")
    return 1 if bad else 0


def _fuzz(names: list[str], seconds: int, jobs: int) -> Iterator[Outcome]:
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(_fuzz_one, name, seconds) for name in names]
        try:
            for done in as_completed(waiting):
                yield done.result()
        except BaseException:
            _stop()
            raise


def _stop() -> None:
    """End the processes that run, and let no other begin."""
    with _LOCK:
        _STOPPED.set()
        for process in _RUNNING:
            process.terminate()


def _run(command: list[str], log: Path) -> int:
    """Run a worker to its end; its exit code."""
    with log.open("wb") as stream:
        with _LOCK:
            if _STOPPED.is_set():
                return 0
            process = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=subprocess.STDOUT, env=_environment())
            _RUNNING.append(process)
        try:
            return process.wait()
        finally:
            with _LOCK:
                _RUNNING.remove(process)


def _fuzz_one(name: str, seconds: int) -> Outcome:
    corpus, found, log = CORPUS / name, FOUND / name, LOGS / f"{name}.log"
    longest = max(LONGEST_INPUT, write_seeds(name, corpus))
    found.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    before, began = set(found.iterdir()), time.monotonic()
    command = [
        str(ROOT / ".fuzz" / "bin" / "python"),
        *("-m", "tests.fuzz.worker", name),
        *(f"-max_total_time={seconds}", f"-timeout={_HANG_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}"),
        *(f"-max_len={longest}", f"-dict={_WORDS}", f"-artifact_prefix={found}/", "-print_final_stats=1"),
        str(corpus),
    ]
    exit_code = _run(command, log)
    said = log.read_text(errors="replace")
    findings = tuple(sorted(set(found.iterdir()) - before))
    if not any(found.iterdir()):
        found.rmdir()
    return Outcome(
        name=name,
        seconds=time.monotonic() - began,
        runs=_number(r"stat::number_of_executed_units:\s*(\d+)", said) or _number(r"#(\d+)\s", said),
        coverage=_number(r"cov: (\d+)", said),
        memory_mib=_number(r"stat::peak_rss_mb:\s*(\d+)", said) or _number(r"rss: (\d+)Mb", said),
        findings=findings,
        failed=exit_code != 0 or bool(findings),
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": "0"}


def _number(pattern: str, text: str) -> int:
    """The last number of that form, 0 if there is none."""
    numbers = re.findall(pattern, text)
    return int(numbers[-1]) if numbers else 0


def _line(outcome: Outcome) -> str:
    verdict = "FINDING" if outcome.failed else "nothing found"
    return (
        f"{outcome.name:22}{outcome.seconds:6.0f} s {outcome.runs:10} inputs  coverage {outcome.coverage:5}"
        f"  {outcome.memory_mib:4} MiB  {verdict}"
    )


def _explain(outcome: Outcome) -> None:
    said = (LOGS / f"{outcome.name}.log").read_text(errors="replace")
    print(f"\n{outcome.name}:")
    for finding in outcome.findings:
        print(f"  {finding.relative_to(ROOT)}")
    print("\n".join(f"  | {line[:200]}" for line in said.splitlines()[-30:]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="by default all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    return parser


if __name__ == "__main__":
    sys.exit(main())
