"""Installs the Debian packages that some tests drive as real parts: QEMU, OVMF, PostgreSQL, Chromium, curl and others.

Only root on Debian or Ubuntu can; anybody else is told the command, and the tests that need a part skip, saying which.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

# Each package, and the program or file that shows it is there.
PACKAGES = {
    "qemu-system-x86": "/usr/bin/qemu-system-x86_64",
    "ovmf": "/usr/share/ovmf/OVMF.fd",
    "postgresql": "/usr/lib/postgresql",
    "chromium": "/usr/bin/chromium",
    "libatomic1": "/usr/lib/x86_64-linux-gnu/libatomic.so.1",  # what drives Chromium is linked with it
    "curl": "/usr/bin/curl",
    "jq": "/usr/bin/jq",
    "openssl": "/usr/bin/openssl",
}
APT = ("apt-get", "-qq", "-y", "--no-install-recommends")


def main() -> int:
    """Install what is missing and can be; 0 also when nothing can, because the tests say what they miss."""
    missing = [name for name, sign in PACKAGES.items() if not os.path.exists(sign)]  # noqa: PTH110
    if not missing:
        return 0
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        sys.stderr.write(f"setup: tests of {', '.join(missing)} will skip; apt-get install {' '.join(missing)}\n")
        return 0
    sys.stderr.write(f"setup: Debian packages {' '.join(missing)} ... ")
    sys.stderr.flush()
    began = time.monotonic()
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (("apt-get", "-qq", "update"), (*APT, "install", *missing)):
        done = subprocess.run(command, env=quiet, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.stderr.write(f"failed; their tests will skip:\n{(done.stdout + done.stderr).strip()[-1000:]}\n")
            return 0
    sys.stderr.write(f"{time.monotonic() - began:.0f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
