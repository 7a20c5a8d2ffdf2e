"""What a process gives up so that its memory stays its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PR_GET_DUMPABLE = 3
TELL = f"""
import ctypes, resource
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl({_PR_GET_DUMPABLE}, 0, 0, 0, 0))
"""


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("", " 1"),
        ("from dstack.transport.hardening import forbid_dumps\nforbid_dumps()", "(0, 0) 0"),
        ("import sys\nsys.argv[1:] = ['-c', 'nothing']\nfrom replicator.__main__ import main\nmain()", "(0, 0) 0"),
        ("import sys\nsys.argv[1:] = ['-c', 'nothing']\nfrom kms.program import main\nmain()", "(0, 0) 0"),
    ],
    ids=["any process", "after forbid_dumps", "the replicator", "the KMS"],
)
def test_what_holds_secrets_leaves_no_core(code: str, told: str) -> None:
    """No core file, and nobody else's eyes: for the function, and for replicator and KMS before they read anything."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{TELL}"], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.strip().endswith(told)
