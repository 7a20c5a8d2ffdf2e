"""The Dockerfile of the replicator, as far as it can be checked without a container engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent.parent
LINES = (PROJECT / "replicator" / "Dockerfile").read_text().splitlines()
PIN = re.compile(r"^([a-z0-9._-]+)(?:\[[a-z,]+\])?==([^\s;\\]+)", re.MULTILINE)

# Runs the program where only the distributions of the first argument, and what the folder here holds, can be imported.
CONFINED = """
import sys
from importlib.metadata import packages_distributions
allowed = set(sys.argv.pop(1).split())
plain = lambda name: name.lower().replace("_", "-").replace(".", "-")
foreign = {top for top, owners in packages_distributions().items() if not allowed & set(map(plain, owners))}
class Confined:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in foreign - {"dstack", "kms", "replicator"}:
            raise ModuleNotFoundError(f"not in the image: {name}")
sys.meta_path.insert(0, Confined())
import runpy
runpy.run_module("replicator", run_name="__main__", alter_sys=True)
"""


def pins(name: str) -> dict[str, str]:
    """Distribution to version, in a file with hashes."""
    return dict(PIN.findall((PROJECT / "requirements" / name).read_text()))


def confined(allowed: set[str]) -> subprocess.CompletedProcess[str]:
    """Have the entry point print its help, with these distributions alone."""
    return subprocess.run(
        [sys.executable, "-c", CONFINED, " ".join(allowed), "--help"],
        cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_lines_copy_what_exists() -> None:
    """Everything that is copied is in the project; pip reads the copied file, wants hashes, and resolves nothing."""
    copied = [line.split()[1] for line in LINES if line.startswith("COPY ")]
    (install,) = (line for line in LINES if line.startswith("RUN "))

    assert copied == ["requirements/product.txt", "dstack", "replicator"]
    assert [(PROJECT / path).exists() for path in copied] == [True] * 3
    assert install == "RUN pip install --no-cache-dir --no-deps --require-hashes -r product.txt"
    assert LINES[-1] == 'ENTRYPOINT ["python", "-m", "replicator"]'


def test_the_image_holds_what_was_tested() -> None:
    """The versions of the image are those of the set-up that tests run with, and nothing of the tests is among them."""
    image, everything = pins("product.txt"), pins("all.txt")

    assert image.items() <= everything.items()
    assert not {"eth-ape", "pytest", "hypothesis"} & image.keys()
    assert {"fastapi", "web3", "cryptography"} <= image.keys()


def test_the_fuzzer_has_what_the_image_holds() -> None:
    """It imports the same modules; where its lock lags behind, it does not start."""
    assert pins("product.txt").items() <= pins("fuzz.txt").items()


def test_the_entry_point_runs_with_the_images_distributions_alone() -> None:
    """All that the program imports is in the image; without one of them it does not start."""
    image = set(pins("product.txt"))

    whole, lacking = confined(image), confined(image - {"fastapi"})

    assert (whole.returncode, whole.stderr) == (0, "")
    assert whole.stdout.startswith("usage: python -m replicator [-h] [-c CONFIG] [--adopt]")
    assert (lacking.returncode, "not in the image: fastapi" in lacking.stderr) == (1, True)
