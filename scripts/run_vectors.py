"""Runs golden data through our public functions: `run_vectors.py [FOLDER] [--json]`.

A kind is a folder and a file name without its ending, such as `kms/kdf`. Exit 1 when something is not as expected.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_CASE_FILES = ("cases.json", "expect.json")
DEFAULT_FOLDER = ROOT.parent / "shared" / "vectors"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and say by the exit code whether everything was as expected."""
    parser = argparse.ArgumentParser(description="Golden data through our public functions.")
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT_FOLDER, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        print(f"no golden data at {options.folder}: nothing to run")
        return 0
    return _run(options.folder, as_json=options.json)


def _run(folder: Path, *, as_json: bool) -> int:
    # Slow to import, and the folder of scripts must stay quick to list.
    from vectors import (
        attestations,
        guest,
        guest_formats,
        guest_keys,
        kms,
        kms_certs,
        kms_contracts,
        measurement,
        quote_parse,
        quotes,
        report,
        vmm,
    )
    from vectors.compare import run_kind

    found = {f"{path.parent.name}/{path.stem}": path for path in sorted(folder.glob("*/*.json"))}
    supported = {
        **attestations.KINDS,
        **quote_parse.KINDS,
        **kms.KINDS,
        **kms_certs.KINDS,
        **kms_contracts.KINDS,
        **guest.KINDS,
        **guest_keys.KINDS,
        **guest_formats.KINDS,
        **vmm.KINDS,
        **measurement.kinds(found),
    }
    tallies = [run_kind(kind, path, supported[kind]) for kind, path in found.items() if kind in supported]
    unsupported = [kind for kind in found if kind not in supported]
    of_quotes = quotes.folders(folder)
    tallies += [quotes.run_folder(str(each.relative_to(folder)), each) for each in of_quotes]
    unsupported += [str(each.relative_to(folder)) for each in _case_folders(folder) if each not in of_quotes]
    print(report.as_json(tallies, unsupported) if as_json else "\n".join(report.table(tallies, unsupported)))
    return int(any(tally.failed for tally in tallies))


def _case_folders(folder: Path) -> list[Path]:
    """Kinds that are a folder of their own, as those of quotes are."""
    return sorted({path.parent for path in folder.glob("*/*/*.json") if path.name in _CASE_FILES})


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
    sys.exit(main())
