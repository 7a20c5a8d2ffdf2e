"""One fuzzing process: `.fuzz/bin/python -m tests.fuzz.worker TARGET [libFuzzer options] CORPUS`."""

from __future__ import annotations

import sys
import time

import atheris

# A parser that is busy for longer than this with one small input can be used to stop a service.
LONGEST_SECONDS = 1.0

with atheris.instrument_imports(include=["dstack", "replicator", "kms", "rfc8785", "ruamel", "json"]):
    from tests.fuzz.targets import TARGETS, attempt


def main() -> None:
    """Fuzz the target named by the first argument until an option of libFuzzer says stop."""
    program, name, *options = sys.argv
    target = TARGETS[name]

    def once(data: bytes) -> None:
        # The processor's time, for a busy machine makes everything slow.
        began = time.process_time()
        attempt(target, data)
        spent = time.process_time() - began
        assert spent < LONGEST_SECONDS, f"{spent:.1f} s for {len(data)} bytes"

    atheris.Setup([program, *options], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
