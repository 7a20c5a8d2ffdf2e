"""The demo, as a stranger runs it: it ends well, refuses what it must, and leaves artifacts that can be checked."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.conftest import OTHER_COMPOSE, DemoRun, run_demo

REFUSALS = [
    ("KmsAuth", "AGGREGATED_MR"),
    ("UpgradeOperator", "UnexpectedState"),
    ("UpgradeOperator", "UnexpectedState"),
    ("AppAuth", "COMPOSE_HASH"),
    ("KmsAuth", "OS_IMAGE"),
    ("the verifier", "QUOTE_UNTRUSTED"),
    ("the verifier", "QUOTE_UNTRUSTED"),
    ("AppAuth", "TCB_STATUS"),
    ("AppAuth", "COMPOSE_HASH"),
    ("the old node", "COMPOSE_HASH"),
    ("the new node", "COMPOSE_HASH"),
]


def test_it_ends_well_and_refuses_by_these_rules(demo: DemoRun) -> None:
    """Every refusal comes, in order, by the rule that forbids it."""
    assert (demo.exit_code, demo.errors) == (0, "")
    assert demo.refusals() == REFUSALS


def test_what_is_measured_is_the_readers_file(demo: DemoRun) -> None:
    """The app-compose.json holds the given compose file, and its hash is the one that the owners allowed."""
    raw = (demo.folder / "app-compose.json").read_bytes()
    allowed = next(entry["compose_hash"] for entry in demo.entries if "compose_hash" in entry)

    assert json.loads(raw)["docker_compose_file"] == OTHER_COMPOSE
    assert hashlib.sha256(raw).hexdigest() == allowed


def test_the_printed_commands_run_as_written(demo: DemoRun) -> None:
    """Each command of the results page succeeds."""
    page = (demo.folder / "README.md").read_text()
    commands = re.search(r"```sh\n(.*?)```", page, re.DOTALL)
    assert commands is not None
    lines = commands[1].splitlines()

    codes = [subprocess.run(_as_module(line), capture_output=True, check=False).returncode for line in lines]

    assert [line.split()[1] for line in lines] == ["compose-hash", "replay", "measure", "verify"]
    assert codes == [0, 0, 0, 0]


def test_the_readme_s_commands_run_as_written(demo: DemoRun, project_root: Path, tmp_path: Path) -> None:
    """What a newcomer types after `make demo` succeeds, in the folder that holds the results."""
    readme = (project_root / "README.md").read_text()
    block = re.search(r"## Check it yourself\n+```sh\n(.*?)```", readme, re.DOTALL)
    assert block is not None
    activate, *lines = block[1].replace("\\\n", " ").splitlines()
    (tmp_path / "demo-results").symlink_to(demo.folder)

    codes = {
        line: subprocess.run(
            _as_module(line.partition(" #")[0]), cwd=tmp_path, capture_output=True, check=False
        ).returncode
        for line in lines
    }

    assert activate == ". .venv/bin/activate"
    assert len(lines) == 5
    assert set(codes.values()) == {0}, codes


def test_a_changed_event_log_no_longer_replays(demo: DemoRun, tmp_path: Path) -> None:
    """The kept artifacts are not decoration: one changed event makes the printed command refuse."""
    answer = json.loads((demo.folder / "app" / "get-quote.json").read_text())
    answer["event_log"] = answer["event_log"].replace('"event":"app-id"', '"event":"app-ix"')
    changed = tmp_path / "get-quote.json"
    changed.write_text(json.dumps(answer))

    done = subprocess.run(_as_module(f"dstack replay {changed}"), capture_output=True, check=False)

    assert done.returncode == 1


def test_the_simulated_root_is_named(demo: DemoRun) -> None:
    """The transcript says at both ends that the root is simulated, and the results page says which."""
    said = [entry["text"] for entry in demo.entries if "SIMULATED" in str(entry.get("text"))]
    root = hashlib.sha256((demo.folder / "platform" / "root.der").read_bytes()).hexdigest()

    assert len(said) == 2
    assert root in said[1]
    assert root in (demo.folder / "README.md").read_text()


def test_no_key_is_left_in_the_results(demo: DemoRun) -> None:
    """Neither a private key nor an app key file is among the artifacts."""
    contents = {path: path.read_bytes() for path in demo.folder.rglob("*") if path.is_file()}

    # The temporary CA's key is public by design, but even that is not here.
    assert [path for path, content in contents.items() if b"PRIVATE KEY" in content] == []
    assert [path for path in contents if "appkeys" in path.name or path.suffix == ".key"] == []


def test_every_transaction_is_kept_with_its_receipt(demo: DemoRun) -> None:
    """The transactions succeed, and each receipt is that of its transaction."""
    kept = json.loads((demo.folder / "chain" / "transactions.json").read_text())

    assert len(kept) > 10
    assert {entry["receipt"]["status"] for entry in kept} == {"0x1"}
    assert [entry["transaction"]["hash"] for entry in kept] == [entry["receipt"]["transactionHash"] for entry in kept]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"services: {", "not YAML"),
        (b"", "got nothing"),
        (b"name: x\n", "'services' is missing"),
        (b"services: {}\n", "at least one service"),
        (b"services:\n  a: {image: x}\n  a: {image: y}\n", "twice"),
        (b"#" * (256 * 1024 + 1), "at most 262144 bytes"),
        (b"\xff\xfe", "UTF-8"),
    ],
    ids=["broken", "empty", "no-services", "zero-services", "repeated-key", "too-large", "not-text"],
)
def test_an_unusable_compose_file_is_one_sentence_and_exit_code_2(
    content: bytes, sentence: str, tmp_path: Path
) -> None:
    """Nothing is started and nothing is written."""
    compose = tmp_path / "docker-compose.yaml"
    compose.write_bytes(content)

    run = run_demo(tmp_path / "results", "--compose", str(compose))

    assert (run.exit_code, len(run.entries)) == (2, 1)
    assert sentence in run.entries[0]["error"]
    assert not (tmp_path / "results").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    """Results never replace what no demo wrote."""
    (tmp_path / "thesis.txt").write_text("mine")

    run = run_demo(tmp_path)

    assert run.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_ctrl_c_ends_every_program_and_removes_the_keys(tmp_path: Path) -> None:
    """After an interrupt there is no process of the demo left, and its private folder is gone."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "dstack.cli", "demo", "--results", str(tmp_path / "results")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )
    _wait_until(lambda: (tmp_path / "results" / "kms" / "kms.toml").exists())
    (private,) = tmp_path.glob("dstack-demo-*")
    mode = stat.S_IMODE(private.stat().st_mode)

    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)

    assert (process.returncode, errors.strip()) == (130, "dstack: interrupted")
    assert mode == 0o700
    assert list(tmp_path.glob("dstack-demo-*")) == []
    assert _processes_naming(str(private)) == []


def test_ctrl_c_while_it_is_still_loading_is_one_line(tmp_path: Path) -> None:
    """Who changes his mind in the first second reads no traceback, and nothing is left."""
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, dstack.devnet.__main__; print('dstack.devnet.story' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "dstack.devnet", "--results", str(tmp_path / "results")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        text=True,
    )
    _wait_until(lambda: list(tmp_path.glob("dstack-demo-*")) != [])

    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)

    assert loaded.stdout == "False\n", "what takes a second to import is imported before interrupts are looked after"
    assert (process.returncode, errors.strip()) == (130, "dstack: interrupted")
    assert list(tmp_path.glob("dstack-demo-*")) == []


def test_an_interrupt_waits_for_the_end_of_an_import() -> None:
    """What is raised while Python lets go of the lock of a module is dropped, and the demo would go on for good."""
    code = """
import os, signal
from dstack.devnet import __main__ as demo
for number in demo.INTERRUPTS:
    signal.signal(number, demo._interrupt)
with demo._interrupts_held():
    os.kill(os.getpid(), signal.SIGINT)
    print("loaded", flush=True)
print("went on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (130, "loaded\n", "")


def _as_module(line: str) -> list[str]:
    program, *arguments = shlex.split(line)
    assert program == "dstack"
    return [sys.executable, "-m", "dstack.cli", *arguments]


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the demo did not come this far"
        time.sleep(0.05)


def _processes_naming(text: str) -> list[str]:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in words:
            lines.append(words)
    return lines
