"""`dstack kms decisions`: entries for people and programs, and a log that is broken ends with exit code 1."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import pytest

from dstack.keys.scalars import k256_public_key
from kms.decision_log.signing import DecisionSigner
from kms.decision_log.store import open_store
from tests.cli_runner import run_dstack

ROOT = bytes(31) + b"\2"
SIGNER = DecisionSigner.derive(ROOT)
SETTINGS = """
core.cert_dir = "{folder}"
[core.attestation.urls]
collateral_dir = "."
[core.auth_api.chain]
rpc_url = "https://rpc.example"
kms_contract = "0x00000000000000000000000000000000000000aa"
"""
GRANTED = {"at": "2027-01-15T08:00:00.000+00:00", "subject": "app", "decision": "granted", "app_id": "a1" * 20}
DENIED = {
    **GRANTED,
    "decision": "denied",
    "app_id": "b2" * 20,
    "block": 77,
    "rule": "COMPOSE_HASH",
    "reason": "Compose hash not allowed",
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings of a KMS with two decisions."""
    store = open_store(f"sqlite:///{tmp_path}/decisions.sqlite3")
    store.append([{**GRANTED, "block": 76}, DENIED], SIGNER)
    store.close()
    path = tmp_path / "kms.toml"
    path.write_text(SETTINGS.format(folder=tmp_path))
    return path


def run(config: Path, arguments: Sequence[str] = ()) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    return run_dstack("kms", "decisions", "-c", str(config), *arguments)


def test_entries_are_shown_one_a_line(config: Path) -> None:
    """Number, time, what was decided, at which block, about whom and by which rule."""
    assert run(config) == (
        0,
        f"1  {GRANTED['at']}  app granted at block 76  {'a1' * 20}\n"
        f"2  {GRANTED['at']}  app denied at block 77  {'b2' * 20}: COMPOSE_HASH: Compose hash not allowed\n",
        "",
    )


def test_entries_of_one_app_in_json(config: Path) -> None:
    """The whole entry with its digest and signature."""
    code, out, _ = run(config, ["--app", "0x" + "b2" * 20, "--json"])

    entry = json.loads(out)
    assert (code, len(entry.pop("digest")), len(entry.pop("signature"))) == (0, 64, 130)
    assert entry == {**DENIED, "seq": 2}


def test_what_rests_on_unseen_acpi_tables_is_said(config: Path) -> None:
    """In the line of such an entry, and by asking for those alone; what is not known is neither."""
    store = open_store(f"sqlite:///{config.parent}/decisions.sqlite3")
    unseen = {**GRANTED, "acpi_source": "from-log", "acpi_tables_verified": False}
    store.append([unseen, {**GRANTED, "acpi_source": "captured", "acpi_tables_verified": True}], SIGNER)
    store.close()

    expected = f"3  {GRANTED['at']}  app granted  {'a1' * 20}; ACPI tables not verified\n"
    assert run(config, ["--unverified-acpi"]) == (0, expected, "")
    assert run(config)[1].count("not verified") == 1
    shown = json.loads(run(config, ["--unverified-acpi", "--json"])[1])
    assert (shown["acpi_source"], shown["acpi_tables_verified"]) == ("from-log", False)


def test_a_whole_log_is_verified(config: Path) -> None:
    """Against the root that is named and a head that was noted."""
    root = k256_public_key(ROOT).hex()
    code, out, _ = run(config, ["--verify", "--json", "--root", root])
    facts = json.loads(out)

    assert (code, facts["verified"], facts["entries"], facts["root"]) == (0, True, 2, root)
    code, out, _ = run(config, ["--verify", "--head", facts["head"]])
    assert (code, out.splitlines()[0]) == (0, "VERIFIED: 2 decisions from 1 to 2, none missing or changed")


def test_a_broken_log_is_refused(config: Path) -> None:
    """A missing entry, a head that is not in it and another root end with exit code 1 and say why."""
    head = json.loads(run(config, ["--verify", "--json"])[1])["head"]
    outcomes = [
        run(config, ["--verify", *more]) for more in (["--root", "02" + "aa" * 32], ["--head", f"3:{head[2:]}"])
    ]
    database = sqlite3.connect(config.parent / "decisions.sqlite3")
    database.execute("UPDATE decision SET app_id = NULL WHERE seq = 2")
    database.commit()
    assert "entry 2: its app_id is another than what is signed" in run(config, ["--verify"])[2]
    database.execute("DELETE FROM decision WHERE seq = 1")
    database.commit()
    database.close()
    outcomes.append(run(config, ["--verify"]))

    assert [code for code, _, _ in outcomes] == [1, 1, 1]
    assert ["entry 1: want root 02aa" in outcomes[0][2], "got no such entry" in outcomes[1][2]] == [True, True]
    assert "dstack: entry 2 is the oldest, and no entry says that those before were removed" in outcomes[2][2]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--root", "02aa"], 2, "--root and --head: want them with --verify"),
        (["--verify", "--root", "02aa"], 2, "--root: want 33 bytes in hexadecimal, got 2"),
        (["--verify", "--head", "x"], 2, "--head: want SEQ:DIGEST"),
        (["--app", "aa"], 2, "AppId: want 20 bytes, got 1"),
    ],
)
def test_what_cannot_be_asked_is_refused(config: Path, arguments: list[str], code: int, words: str) -> None:
    """Each argument says what it wants."""
    ended, out, err = run(config, arguments)

    assert (ended, out, words in err) == (code, "", True)


def test_no_log_is_not_an_empty_log(config: Path) -> None:
    """A KMS that decided nothing yet has no file, which is exit code 3, and reading makes none."""
    (config.parent / "decisions.sqlite3").unlink()

    code, _, err = run(config)

    assert (code, "decisions.sqlite3: No such file" in err) == (3, True)
    assert not (config.parent / "decisions.sqlite3").exists()
