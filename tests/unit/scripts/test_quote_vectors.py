"""Golden quotes through the runner: folders with one case, and one with many; what is wrong is seen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

INTEL = "intel-tdx-v4-uptodate"


@pytest.fixture
def golden(project_root: Path, tmp_path: Path) -> Path:
    """A copy of the golden quotes that may be spoiled."""
    shutil.copytree(project_root / "tests" / "vectors" / "quotes", tmp_path / "quotes")
    return tmp_path


@pytest.fixture
def run(project_root: Path, golden: Path) -> Callable[[], dict[str, Any]]:
    """Runs the program over the copy; gives what came of each kind by its name."""

    def run() -> dict[str, Any]:
        command = [sys.executable, project_root / "scripts" / "run_vectors.py", golden, "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        kinds = json.loads(done.stdout)["kinds"]
        assert done.returncode == int(any(each["failures"] for each in kinds))
        return {each["kind"].removeprefix("quotes/"): each for each in kinds}

    return run


def spoil(path: Path, change: Callable[[Any], object]) -> None:
    """Change one JSON file."""
    tree = json.loads(path.read_bytes())
    change(tree)
    path.write_text(json.dumps(tree))


def wrong(kind: Any) -> set[tuple[str, str]]:
    """Case and member of each failure."""
    return {(each["case"], each["member"]) for each in kind["failures"]}


def test_golden_quotes_pass(run):
    """Every folder is a kind; the simulated maker's has all its cases, and what its file says of itself."""
    kinds = run()

    assert {name: (kind["cases"], wrong(kind)) for name, kind in kinds.items()} == {
        INTEL: (1, set()),
        "intel-sgx-v3-hardening": (1, set()),
        "intel-tdx-v5-below-lowest-level": (1, set()),
        "sim": (116, set()),
    }


def test_a_folder_without_collateral_is_parsed_only(run, golden):
    """Without collateral nothing is verified, and the fields are still compared."""
    folder = golden / "quotes" / INTEL
    (folder / "collateral.json").unlink()
    spoil(folder / "expect.json", lambda tree: tree.update(expect={"result": "parse-only"}))
    assert wrong(run()[INTEL]) == set()

    spoil(folder / "expect.json", lambda tree: tree["header"].update(version=5))
    assert wrong(run()[INTEL]) == {(INTEL, "header")}


def test_a_root_may_be_written_into_the_cases(run, golden):
    """The simulated root may stand in the file itself, in hexadecimal, in the place of a file's name."""
    root = (golden / "quotes" / "sim" / "root.der").read_bytes()
    (golden / "quotes" / "sim" / "root.der").unlink()
    spoil(golden / "quotes" / "sim" / "cases.json", lambda tree: tree.update(root=root.hex()))

    assert wrong(run()["sim"]) == set()


def test_what_is_expected_falsely_is_a_failure(run, golden):
    """Another result, status, field or mutation than ours is a failure of that case and member alone."""
    spoil(golden / "quotes" / INTEL / "expect.json", lambda tree: tree["expect"].update(status="OutOfDate"))
    spoil(
        golden / "quotes" / "intel-sgx-v3-hardening" / "expect.json",
        lambda tree: tree["expect"].update(result="accept"),
    )
    spoil(
        golden / "quotes" / "intel-tdx-v5-below-lowest-level" / "expect.json", lambda tree: tree["body"].update(xfam="")
    )

    def change(tree: Any) -> None:
        cases = {case["name"]: case for case in tree["cases"]}
        cases["good"]["expect"] = "reject"
        cases["truncated"]["expect"] = "accept:UpToDate"
        cases["td-debug"]["dcap_qvl_0_7_0"] = "accept:UpToDate"
        cases["trailing-garbage"]["mutate"] = {"reverse": True}
        tree["fmspc"] = "00"

    spoil(golden / "quotes" / "sim" / "cases.json", change)
    kinds = run()

    assert wrong(kinds[INTEL]) == {(INTEL, "expect")}
    assert wrong(kinds["intel-sgx-v3-hardening"]) == {("intel-sgx-v3-hardening", "expect")}
    assert wrong(kinds["intel-tdx-v5-below-lowest-level"]) == {("intel-tdx-v5-below-lowest-level", "body")}
    assert wrong(kinds["sim"]) == {
        ("good", "expect"),
        ("truncated", "expect"),
        ("td-debug", "dcap_qvl_0_7_0"),
        ("trailing-garbage", ""),
        ("file", "fmspc"),
    }


def test_a_case_that_cannot_be_run_fails_by_itself(run, golden):
    """A time before there is any is refused by both verifiers; one that no clock shows fails that case alone."""

    def change(tree: Any) -> None:
        good = tree["cases"][0]
        tree["cases"] = [
            good,
            {**good, "name": "before 1970", "expect": "reject", "dcap_qvl_0_7_0": "reject:time", "at": -1},
            {**good, "name": "never", "at": 10**18},
            good,
        ]

    spoil(golden / "quotes" / "sim" / "cases.json", change)
    kind = run()["sim"]

    assert (kind["cases"], wrong(kind)) == (5, {("never", "")})


@pytest.mark.parametrize(
    ("expect", "members", "apart"),
    [
        ("accept", set(), []),
        ("accept:UpToDate", set(), []),
        ("reject", {"expect"}, []),
        ("anything", {"expect"}, []),
        ({"result": "accept", "advisory_ids": [], "ppid": "811dca2a26b952e85bb6448b097ba4fd"}, set(), []),
        ({"result": "accept", "fmspc": "b0c06f000000", "reason": "prose"}, set(), []),
        ({"result": "accept", "advisory_ids": ["INTEL-SA-00001"]}, {"expect"}, []),
        ({"result": "accept", "fmspc": "00c06f000000"}, {"expect"}, []),
        ({"result": "accept", "mood": "good"}, set(), ["expect.mood"]),
    ],
)
def test_all_that_is_expected_of_a_verdict_is_compared(run, golden, expect, members, apart):
    """A verdict may be one word or an object; each of its members is compared, is prose, or is named as neither."""
    spoil(golden / "quotes" / INTEL / "expect.json", lambda tree: tree.update(expect=expect))
    kind = run()[INTEL]

    assert (wrong(kind), kind["not_compared"]) == ({(INTEL, each) for each in members}, apart)
