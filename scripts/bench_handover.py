"""A handover over loopback between programs, beside bare AES-256-GCM and cp over the same bytes. Used by bench.py."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench_handover_bare import bare_seconds, disk_seconds
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dstack.cli.handover_session import Node as Address
from dstack.cli.handover_session import Session
from dstack.devnet.governance import Governance
from dstack.devnet.handover_steps import plan_handover
from dstack.devnet.programs import Program, Programs
from dstack.devnet.replicators import Node, bootstrap, start_program, write_settings
from dstack.devnet.transcript import Transcript
from dstack.devnet.world import Machine, World, boot_answer

MIB = 1 << 20
_ROUNDS = 5
_LARGE_ROUNDS = 3


def measure(size_mib: int) -> dict[str, Any]:
    """Hand over a small file, and one of *size_mib* MiB to one node after the other.

    Returns:
        MB/s (10^6 bytes): medians of the stream, from the old node's answer to the new node's receipt, and of all three
        rounds; the limits at their best, for `cp` varies with what memory is free; and the ratio of the stream to the
        slower one. `cp` leaves everything in memory, while a handover ends on the disk, and so do: `cp_synced`, with
        the stream's ratio to it at its best; `disk`, the same bytes written directly and nothing else; and
        `bare_programs`, the bare steps of a stream in three programs. Processor seconds per GiB of the old node, the
        new node and who carries (this program), and the rate that they would allow if they shared this machine's cores
        without ever waiting; seconds of a whole small handover and of its rounds (medians); MiB that each program grew
        by at most while it streamed.
    """
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="dstack-bench-")))
        quiet = cleanup.enter_context(Path(os.devnull).open("w"))
        programs = cleanup.enter_context(Programs(folder / "logs"))
        world = World.create(Transcript(quiet, False, folder / "results"), programs, folder / "secret")
        governance = Governance.deploy(world, cleanup)
        plan = plan_handover(b"services:\n  app:\n    image: notes:1\n", governance.handover_app)
        governance.allow_apps({plan.app_id: plan.old_hash}, world)
        names = ("old", "small", "other", *(f"new-{number}" for number in range(_LARGE_ROUNDS)))
        machines = [Machine(name, plan.old, app_id=plan.app_id) for name in names]
        booting = [machine.start(world) for machine in machines]
        for program in booting:
            boot_answer(program)
        old, small, other, *new = (
            write_settings(world, governance, machine, require_genesis=False) for machine in machines
        )
        content = folder / "content"
        _fill(content, size_mib)
        content.rename(old.secure_file)
        bootstrap(world, old, "--adopt")
        bootstrap(world, small)
        return {**_small(world, small, other), **_large(world, old, new, size_mib)}


def _small(world: World, old: Node, new: Node) -> dict[str, Any]:
    """Rounds of a small handover; the new node keeps what it has from the first one on."""
    for node in (old, new):
        start_program(world, node)
    times: dict[str, list[float]] = {"request": [], "whole": []}
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        session = Session(Address.at(old.url, "old node"), Address.at(new.url, "new node"))
        session.ask()
        times["request"].append(time.perf_counter() - began)
        session.transfer(lambda _done, _all: None)
        times["whole"].append(time.perf_counter() - began)
    return {f"small_{name}_seconds": round(statistics.median(each), 4) for name, each in times.items()}


def _large(world: World, old: Node, receivers: list[Node], size_mib: int) -> dict[str, Any]:
    copy = old.folder / "copy"
    operations: dict[str, Callable[[], float]] = {
        "aes_256_gcm": lambda: _aes(old.secure_file),
        "cp": lambda: _cp(old.secure_file, copy),
        "cp_synced": lambda: _cp(old.secure_file, copy, synced=True),
        "disk": lambda: size_mib * MIB / disk_seconds(size_mib, copy) / 1e6,
        "bare_programs": lambda: size_mib * MIB / bare_seconds(old.secure_file, copy) / 1e6,
    }
    rates: dict[str, list[float]] = {name: [] for name in ("stream", "whole", *operations)}
    spent, grown = [], []
    sender = start_program(world, old)
    for node in receivers:
        # Between the handovers: what else the machine does changes meanwhile.
        for name, operation in operations.items():
            rates[name] += [operation(), operation()]
        programs = [sender, start_program(world, node)]
        before = [_resident(program, "VmRSS") for program in programs]
        processor = _processor(programs)
        whole, stream = _hand_over(old, node)
        rates["whole"].append(size_mib * MIB / whole / 1e6)
        rates["stream"].append(size_mib * MIB / stream / 1e6)
        spent.append([late - early for early, late in zip(processor, _processor(programs), strict=True)])
        grown.append([_resident(program, "VmHWM") - least for program, least in zip(programs, before, strict=True)])
        programs[1].stop()
    medians = {name: round(statistics.median(each), 1) for name, each in rates.items()}
    limits = {name: round(max(rates[name]), 1) for name in ("aes_256_gcm", "cp")}
    seconds = [statistics.median(each) * 1024 / size_mib for each in zip(*spent, strict=True)]
    return {
        "stream": medians["stream"],
        "whole": medians["whole"],
        "limits": limits,
        "ratio": round(medians["stream"] / min(limits.values()), 3),
        **{name: medians[name] for name in ("cp_synced", "disk", "bare_programs")},
        "ratio_to_cp_synced": round(medians["stream"] / max(rates["cp_synced"]), 3),
        "processor_seconds_per_gib": dict(
            zip(("old", "new", "carrier"), (round(each, 2) for each in seconds), strict=True)
        ),
        "rate_if_nobody_waited": round(len(os.sched_getaffinity(0)) * (1 << 30) / sum(seconds) / 1e6, 1),
        "grown_mib": {
            name: round(max(each) / MIB, 1) for name, each in zip(("old", "new"), zip(*grown, strict=True), strict=True)
        },
    }


def _hand_over(old: Node, new: Node) -> tuple[float, float]:
    """Seconds of all three rounds, and of the stream alone."""
    answered: list[float] = []
    began = time.perf_counter()
    session = Session(Address.at(old.url, "old node"), Address.at(new.url, "new node"))
    session.ask()
    session.transfer(lambda _done, _all: answered.append(time.perf_counter()) if not answered else None)
    ended = time.perf_counter()
    return ended - began, ended - answered[0]


def _fill(path: Path, size_mib: int) -> None:
    with path.open("wb") as stream:
        for _ in range(size_mib):
            stream.write(os.urandom(MIB))
        # Else writing it to the disk would slow down whatever is measured next.
        stream.flush()
        os.fsync(stream.fileno())


def _aes(path: Path) -> float:
    """Encryption of each MiB of the file, into the same memory again and again; reading is not counted."""
    cipher, spent = AESGCM(bytes(32)), 0.0
    content, sealed = bytearray(MIB), bytearray(MIB + 16)
    with path.open("rb") as stream:
        for number in range(path.stat().st_size // MIB):
            stream.readinto(content)
            began = time.perf_counter()
            cipher.encrypt_into(number.to_bytes(12, "big"), content, None, sealed)
            spent += time.perf_counter() - began
    return path.stat().st_size / spent / 1e6


def _cp(path: Path, to: Path, *, synced: bool = False) -> float:
    os.sync()
    began = time.perf_counter()
    subprocess.run(["cp", str(path), str(to)], check=True)
    if synced:
        subprocess.run(["sync", str(to)], check=True)
    rate = path.stat().st_size / (time.perf_counter() - began) / 1e6
    to.unlink()
    return rate


def _processor(programs: list[Program]) -> list[float]:
    """Seconds of processor time that the programs, and then this one, have taken so far."""
    own = os.times()
    tick = os.sysconf("SC_CLK_TCK")
    taken = []
    for program in programs:
        fields = Path(f"/proc/{program.process.pid}/stat").read_text().rpartition(")")[2].split()
        taken.append((int(fields[11]) + int(fields[12])) / tick)
    return [*taken, own.user + own.system]


def _resident(program: Program, name: str) -> int:
    """Bytes of memory of a program: VmRSS now, VmHWM at most so far."""
    status = Path(f"/proc/{program.process.pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith(name))
