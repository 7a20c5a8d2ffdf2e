"""A PostgreSQL server of Debian's package, at a unix socket, run by somebody who is not root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

START_SECONDS = 60


def postgres_programs() -> Path:
    """Where `initdb` and `pg_ctl` are; the test is skipped where they are not."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not found:
        pytest.skip("no PostgreSQL; apt-get install postgresql")
    return found[-1].parent


@contextmanager
def postgres() -> Iterator[str]:
    """Run a server with an empty database for the length of a `with` block; gives its URL for SQLAlchemy."""
    programs, somebody = postgres_programs(), _somebody()
    folder = Path(tempfile.mkdtemp(prefix="kms-pg-"))
    try:
        if somebody:
            shutil.chown(folder, somebody["user"], somebody["group"])
        data, quiet = folder / "data", {"check": True, "capture_output": True, "timeout": START_SECONDS, "cwd": folder}
        # The data is thrown away: without fsync the server starts faster.
        subprocess.run([programs / "initdb", "-D", data, "-U", "kms", "-A", "trust", "-N"], **quiet, **somebody)
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        start = [programs / "pg_ctl", "-D", data, "-l", folder / "log", "-w", "-o", options, "start"]
        subprocess.run(start, **quiet, **somebody)
        try:
            yield f"postgresql+psycopg://kms@/postgres?host={folder}"
        finally:
            subprocess.run([programs / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop"], **quiet, **somebody)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def silent(url: str) -> Iterator[None]:
    """For the length of a `with` block the server of `postgres` lives and does nothing, nor do its processes."""
    folder = Path(str(make_url(url).query["host"]))
    server = int((folder / "data" / "postmaster.pid").read_text().split()[0])
    os.kill(server, signal.SIGSTOP)
    stopped = [server]
    try:
        # Who is stopped starts nobody: these are all.
        for process in map(int, Path(f"/proc/{server}/task/{server}/children").read_text().split()):
            os.kill(process, signal.SIGSTOP)
            stopped.append(process)
        yield
    finally:
        for process in stopped:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


def _somebody() -> dict[str, Any]:
    """Who runs it: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return {}
    names = {entry.pw_name for entry in pwd.getpwall()}
    user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
