"""`dstack kms doctor` before a real chain, agent, collateral and keys: it finds what is wrong and says the fix."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dstack.devnet.programs import Programs
from kms import doctor
from kms.doctor import Finding, Level, exit_code
from tests.cli_runner import run_dstack
from tests.integration.test_kms_program import Around, around, bootstrap

assert around


def program(config: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and standard output of the program itself."""
    command = [sys.executable, "-m", "dstack.cli", "kms", "doctor", "-c", str(config), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.stderr == ""
    return ended.returncode, ended.stdout


def examined(config: Path) -> tuple[int, dict[str, tuple[str, str, str]]]:
    """The exit code, and each finding that is not ok: level, words and fix."""
    code, out = program(config, "--json")
    answer = json.loads(out)
    assert answer["exit_code"] == code
    wrong = {one["name"]: (one["level"], one["said"], one["fix"]) for one in answer["findings"] if one["level"] != "ok"}
    wrong.pop("settings", None)
    return code, wrong


def changed(old: str, new: str) -> Callable[[Path], None]:
    """A change of the settings."""

    def change(config: Path) -> None:
        text = config.read_text()
        assert old in text
        config.write_text(text.replace(old, new))

    return change


def test_from_the_first_look_to_a_kms_that_runs(around: Around) -> None:
    """At first directory and permission are missing; when the KMS runs nothing is wrong, and each damage is named."""
    code, wrong = examined(around.config)
    assert (code, sorted(wrong)) == (1, ["keys", "permission"])
    certs = around.folder / "certs"
    assert wrong["keys"] == (
        "warning",
        f"{certs} is not there: the KMS was not started yet, or the storage of its keys is not mounted",
        "start the KMS: it makes the folder, for its owner alone",
    )
    assert wrong["permission"][1] == "this machine may not be a KMS: Aggregated MR not allowed (AGGREGATED_MR)"

    with Programs(around.folder) as programs:
        bootstrap(around, programs)
        assert examined(around.config) == (0, {})
        code, out = program(around.config)
        assert (code, f"service: answers at https://127.0.0.1:{around.url.rpartition(':')[2]}" in out) == (0, True)
    code, out = program(around.config)
    assert (code, "WRONG" in out, "unknown" in out) == (0, False, False)
    assert "permission: this machine may be a KMS (block " in out

    text, contract = around.config.read_text(), around.chain.own_kms_auth.address
    for damage, repair, expected in (
        (
            lambda _: (certs / "rpc.key").chmod(0o644),
            lambda: (certs / "rpc.key").chmod(0o600),
            (1, {"permissions": "rpc.key has mode 644, want 600"}),
        ),
        (
            lambda _: (certs / "rpc.crt").rename(certs / "away"),
            lambda: (certs / "away").rename(certs / "rpc.crt"),
            (1, {"certificate rpc.crt": "rpc.crt: No such file or directory"}),
        ),
        (
            changed('image.acpi_tables = "from-log"', ""),
            None,
            (3, {"own evidence": "core.image.acpi_tables is unset"}),
        ),
        (changed("agent.sock", "absent.sock"), None, (3, {"guest agent": "absent.sock"})),
        (
            changed(contract, "0x" + "11" * 20),
            None,
            (1, {"contract": "no contract at 0x11", "permission": "no contract"}),
        ),
        (
            changed(around.chain.chain.rpc_url, "http://127.0.0.1:9"),
            None,
            (
                3,
                {
                    "chain endpoint 1": "dead: cannot be reached",
                    "chain": "cannot be reached",
                    "permission": "cannot be",
                },
            ),
        ),
    ):
        damage(around.config)
        code, wrong = examined(around.config)
        if repair:
            repair()
        around.config.write_text(text)
        assert wrong.pop("service") == (
            "warning",
            f"no KMS with these keys answers at https://127.0.0.1:{around.url.rpartition(':')[2]}",
            "start the KMS",
        )
        assert (code, sorted(wrong)) == (expected[0], sorted(expected[1]))
        assert [expected[1][name] in wrong[name][1] and wrong[name][2] != "" for name in wrong] == [True] * len(wrong)


def test_settings_that_cannot_be_read_are_bad_input(tmp_path: Path) -> None:
    """The exit code tells them apart from what is wrong around the KMS."""
    code, _, err = run_dstack("kms", "doctor", "-c", str(tmp_path / "absent.toml"))

    assert (code, "absent.toml: cannot be read" in err) == (2, True)


NOW = datetime(2027, 1, 15, 8, 0, tzinfo=UTC)


def test_a_directory_that_others_can_read_is_wrong(tmp_path: Path) -> None:
    """The mode that is there, the mode that is wanted, and the command."""
    tmp_path.chmod(0o755)

    assert next(doctor._keys(tmp_path)) == Finding(
        "permissions", Level.WRONG, f"{tmp_path} has mode 755, want 700", f"chmod 700 {tmp_path}"
    )


@pytest.mark.parametrize(
    ("newest", "level", "words"),
    [
        (NOW - timedelta(seconds=12), Level.OK, "within 0:02:00"),
        (NOW + timedelta(minutes=3), Level.WRONG, "this clock is 0:03:00 behind the newest block of https://a"),
        (NOW - timedelta(minutes=3), Level.WARNING, "the newest block of https://a is 0:03:00 old"),
    ],
)
def test_the_clock_is_compared_with_the_newest_block(newest: datetime, level: Level, words: str) -> None:
    """A clock that is behind a block is wrong for certain; a block that is old may be the endpoint's fault."""
    finding = doctor._clock(newest, NOW, "https://a")

    assert (finding.level, finding.said.startswith(words), finding.fix == "") == (level, True, level is Level.OK)


@pytest.mark.parametrize(
    ("levels", "code"),
    [
        ({Level.OK, Level.WARNING}, 0),
        ({Level.OK, Level.UNKNOWN}, 3),
        ({Level.UNKNOWN, Level.WRONG}, 1),
        (set(), 0),
    ],
)
def test_what_is_wrong_weighs_more_than_what_is_unknown(levels: set[Level], code: int) -> None:
    """Exit codes 0, 1 and 3 as everywhere."""
    assert exit_code(levels) == code
