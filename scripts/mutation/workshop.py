"""Copies of the checkout in which one source at a time is faulty, and the tests that run there.

The tests of a copy see nothing of the checkout but its installed packages: Python imports the copy's modules, which
load the copy's artifacts. So no module of ours needs a way to be pointed at other artifacts, and there is none that
an operator's environment could use.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import compile_contracts

from mutation.rules import Mutation
from mutation.session import run_pytest

LINKED = ("node_modules", ".solcx")
# They state what the code is, not what it does: any other code would fail them.
LEFT_OUT = (
    "tests/contracts/test_build.py",
    "tests/contracts/test_gas.py",
    "tests/contracts/properties/test_p26_gas.py",
    "tests/contracts/test_mutation.py",
    "tests/contracts/test_reproducible_build.py",
)
TESTS = ("tests/contracts/test_*.py", "tests/contracts/properties/test_*.py", "tests/adversary/governance/test_*.py")
FORGE = Path("node_modules/@foundry-rs/forge-linux-amd64/bin/forge")
# forge looks only at what the likeliest files let pass, and at fewer sequences than `make test` has it look at.
FORGE_RUNS = {"FOUNDRY_FUZZ_RUNS": "32", "FOUNDRY_INVARIANT_RUNS": "12", "FOUNDRY_INVARIANT_DEPTH": "48"}
# What notices most, before the run has learnt that by itself.
FIRST = (
    "tests/contracts/test_operator_execute.py",
    "tests/contracts/test_operator_deny.py",
    "tests/contracts/properties/test_p15_nothing_is_padded.py",
    "tests/contracts/properties/test_p18_events_alone_rebuild_the_state.py",
)
SECONDS_A_TEST = 120
LIKELIEST = 5
_FAILED = re.compile(r"^(?:FAILED|ERROR) ([^\s\[]+)", re.MULTILINE)
# The steps that led to a broken invariant may stand between the two.
_FORGE_FAILED = re.compile(r"^\[FAIL.*?\b(\w+)\([\w, ]*\) \(", re.MULTILINE | re.DOTALL)


class WorkshopError(Exception):
    """The copies or their tests do not work; the message is for a person."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one mutation.

    Attributes:
        outcome: `killed` or `survived`; `refused` when solc does not compile it, `same` when it compiles to the code
            that there was, `unjudged` when there was no time for the tests to end.
        by: The test that failed, or what else ended it.
    """

    outcome: str
    by: str = ""


class Workshop:
    """One copy of the checkout."""

    def __init__(self, folder: Path, files: Sequence[str], noticed: Counter[tuple[str, str]]) -> None:
        """Make the copy.

        Args:
            folder: Where to; empty.
            files: Their paths, from the root of the project.
            noticed: How often which test file noticed a fault in which source; shared by the copies.
        """
        self.folder = folder
        self._noticed = noticed
        self._artifacts = folder / "dstack" / "chain" / "artifacts"
        for name in files:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(compile_contracts.ROOT / name, target)
        for name in LINKED:
            (folder / name).symlink_to(compile_contracts.ROOT / name)
        self._parts: dict[str, set[str]] = {}
        self._sound: set[str] = set()
        said = self.compile(compile_contracts.SOURCES)
        if said:
            raise WorkshopError(f"the sources do not compile: {said}")
        self._unharmed = {path: path.read_text() for path in self._artifacts.glob("*.json")}
        self._codes = self._codes_now()

    def try_mutation(self, mutation: Mutation, *, seconds: int) -> Fate:
        """Put the fault in, see what the tests say, and take it out again.

        Raises:
            WorkshopError: What noticed it also fails without it.
        """
        source = self.folder / mutation.path
        original = source.read_bytes()
        source.write_bytes(mutation.apply(original))
        try:
            said = self.compile([name for name, parts in self._parts.items() if mutation.path in parts])
            if said:
                return Fate("refused", said)
            if self._codes_now() == self._codes:
                return Fate("same")
            fate = self.judge(mutation.path, seconds=seconds)
        finally:
            source.write_bytes(original)
            for path, text in self._unharmed.items():
                path.write_text(text)
        if fate.outcome == "killed":
            self._require_sound(fate.by.split("::")[0], seconds=seconds)
        return fate

    def _require_sound(self, test: str, *, seconds: int) -> None:
        """What noticed a fault must pass where there is none, or it would have noticed anything."""
        by_forge = test.startswith("forge")
        name = "forge" if by_forge else test
        if name not in self._sound:
            fate = self._run_forge(seconds=seconds) if by_forge else self._run_pytest([test], seconds=seconds)
            if fate.outcome != "survived":
                raise WorkshopError(f"{test} fails on the contracts as they are: {fate.by}")
            self._sound.add(name)

    def compile(self, names: Iterable[str]) -> str:
        """Write these artifacts of the sources as they are; what solc objects to, nothing when it does not."""
        wanted = {name: compile_contracts.SOURCES[name] for name in names}
        output = compile_contracts.run_solc(self.folder, names=wanted)
        errors = [entry["message"] for entry in output.get("errors", ()) if entry["severity"] == "error"]
        if errors:
            return str(errors[0])
        self._artifacts.mkdir(parents=True, exist_ok=True)
        for name, path in wanted.items():
            (self._artifacts / f"{name}.json").write_text(compile_contracts.artifact(name, path, output))
            self._parts[name] = set(json.loads(output["contracts"][path][name]["metadata"])["sources"])
        return ""

    def tests(self, source: str = "") -> list[str]:
        """Every test file: first those that noticed most in *source* so far, then `FIRST`, then those named like it."""
        words = {word.lower() for word in re.findall("[A-Z][a-z]+", Path(source).stem)}
        files = sorted(path for pattern in TESTS for path in self.folder.glob(pattern))
        names = [str(path.relative_to(self.folder)) for path in files]

        def promise(name: str) -> tuple[int, bool, int, int]:
            alike = len(words & set(re.split(r"[_./]", name)))
            return -self._noticed[source, name], name not in FIRST, -alike, -self._noticed["", name]

        return sorted((name for name in names if name not in LEFT_OUT), key=promise)

    def judge(self, source: str = "", *, seconds: int) -> Fate:
        """What the tests say of the sources as they are: the likeliest files, then forge, then all others."""
        files = self.tests(source)
        for some in (files[:LIKELIEST], None, files[LIKELIEST:]):
            fate = self._run_forge(seconds=seconds) if some is None else self._run_pytest(some, seconds=seconds)
            if fate.outcome != "survived":
                break
        self._noticed.update([(source, fate.by.split("::")[0]), ("", fate.by.split("::")[0])])
        return fate

    def _run_forge(self, *, seconds: int) -> Fate:
        if not (self.folder / FORGE).exists() or not (self.folder / "tests" / "forge").is_dir():
            return Fate("survived")
        try:
            said = subprocess.run(
                [self.folder / FORGE, "test", "--fail-fast"],
                cwd=self.folder,
                env=os.environ | FORGE_RUNS,
                capture_output=True,
                text=True,
                check=False,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return Fate("unjudged", f"forge: no end within {seconds} s")
        failed = _FORGE_FAILED.search(said.stdout)
        if said.returncode and not failed:
            raise WorkshopError(f"forge does not work:\n{said.stdout[-1000:]}{said.stderr[-1000:]}")
        return Fate("killed", f"forge: {failed[1]}") if failed else Fate("survived")

    def _run_pytest(self, files: Sequence[str], *, seconds: int) -> Fate:
        """Run *files* up to the first failure.

        Raises:
            WorkshopError: pytest itself does not work.
        """
        options = ["-p", "no:ape_test", "-p", "no:cacheprovider", "-q", "-x", "--tb=no", f"--timeout={SECONDS_A_TEST}"]
        code, said = run_pytest(self.folder, [*options, *files], seconds=seconds)
        if code is None:
            return Fate("unjudged", f"no end within {seconds} s")
        if code not in (0, 1):
            raise WorkshopError(f"pytest does not work:\n{said[-2000:]}")
        failed = _FAILED.search(said)
        return Fate("killed", failed[1] if failed else "?") if code else Fate("survived")

    def _codes_now(self) -> dict[str, str]:
        """Creation code of each contract, without the digest of its source text."""
        contents = {path.name: json.loads(path.read_text()) for path in self._artifacts.glob("*.json")}
        return {name: compile_contracts.without_metadata(content["bytecode"]) for name, content in contents.items()}
