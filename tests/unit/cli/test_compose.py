"""`dstack compose` and `dstack compose-hash`: from a docker-compose file to the hash that the chain allows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dstack.cli.compose import command as compose
from dstack.cli.compose_hash import command as compose_hash
from dstack.errors import ComposeMalformedError, InputError, RefusedError
from dstack.measurement.compose import app_compose_from_docker_compose, default_app_id, parse_app_compose
from dstack.measurement.compose import compose_hash as hash_of
from dstack.measurement.sdk_form import sdk_compose_hash

DIGEST = "sha256:" + "ab" * 32
PINNED = f"services:\n  web:\n    image: nginx@{DIGEST}\n".encode()
TAGGED = b"services:\n  web:\n    image: nginx:latest\n"


@pytest.fixture
def docker_compose(tmp_path: Path) -> Path:
    """Write a docker-compose file whose image is fixed."""
    path = tmp_path / "hello.yaml"
    path.write_bytes(PINNED)
    return path


def test_the_app_compose_goes_to_standard_output(docker_compose: Path) -> None:
    """Exactly its bytes, named after the file; the hash goes to standard error."""
    result = CliRunner(mix_stderr=False).invoke(compose, [str(docker_compose)])

    wanted = app_compose_from_docker_compose(PINNED, name="hello")
    assert (result.exit_code, result.stdout_bytes) == (0, wanted)
    assert result.stderr.splitlines() == [
        f"compose hash    {hash_of(wanted).hex()}",
        f"default app id  {default_app_id(hash_of(wanted)).hex()}",
    ]


def test_the_app_compose_goes_to_a_file(docker_compose: Path, tmp_path: Path) -> None:
    """Every option is in what is written, and the answer says its hash."""
    out = tmp_path / "app-compose.json"
    options = "--name app --key-provider local --key-provider-id 0xab --gateway --no-instance-id --public-logs"
    more = "--public-sysinfo --allow-env A --allow-env B --storage-fs ext4 --json --out"

    result = CliRunner(mix_stderr=False).invoke(
        compose, [str(docker_compose), *options.split(), *more.split(), str(out)]
    )

    wanted = app_compose_from_docker_compose(
        PINNED,
        name="app",
        key_provider="local",
        key_provider_id=b"\xab",
        gateway_enabled=True,
        no_instance_id=True,
        public_logs=True,
        public_sysinfo=True,
        allowed_envs=("A", "B"),
        storage_fs="ext4",
    )
    assert result.exit_code == 0
    assert out.read_bytes() == wanted
    assert json.loads(result.stdout) == {
        "compose_hash": hash_of(wanted).hex(),
        "default_app_id": default_app_id(hash_of(wanted)).hex(),
        "unpinned_services": [],
        "out": str(out),
    }


def test_an_image_that_can_change_is_told() -> None:
    """A warning, not a refusal: the file is written all the same."""
    result = CliRunner(mix_stderr=False).invoke(compose, ["-"], input=TAGGED)

    assert (result.exit_code, parse_app_compose(result.stdout_bytes).name) == (0, "app")
    assert "warning: service 'web': image 'nginx:latest' is not fixed by a sha256 digest" in result.stderr


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_an_image_that_can_change_is_refused_where_digests_are_required(tmp_path: Path, more: list[str]) -> None:
    """Each service is named and nothing is written; a file whose images are fixed passes."""
    out = tmp_path / "app-compose.json"
    arguments = ["-", "--require-digests", "--out", str(out), *more]

    refused = CliRunner(mix_stderr=False).invoke(compose, arguments, input=TAGGED)
    assert isinstance(refused.exception, RefusedError)
    assert str(refused.exception) == "service 'web': image 'nginx:latest' is not fixed by a sha256 digest"
    assert (refused.stdout, out.exists()) == ("", False)
    assert CliRunner(mix_stderr=False).invoke(compose, arguments, input=PINNED).exit_code == 0
    assert parse_app_compose(out.read_bytes()).name == "app"


def test_json_carries_the_file_and_the_warnings() -> None:
    """Without --out, the app-compose.json is in the answer."""
    result = CliRunner(mix_stderr=False).invoke(compose, ["-", "--json"], input=TAGGED)

    answer = json.loads(result.stdout)
    assert answer["unpinned_services"] == ["web"]
    assert hash_of(answer["app_compose"].encode()).hex() == answer["compose_hash"]


def test_a_file_that_cannot_be_written_is_named(docker_compose: Path, tmp_path: Path) -> None:
    """The sentence says which and why."""
    result = CliRunner(mix_stderr=False).invoke(compose, [str(docker_compose), "--out", str(tmp_path)])

    assert isinstance(result.exception, InputError)
    assert str(result.exception) == f"{tmp_path}: cannot be written: Is a directory"


def test_the_hash_of_an_app_compose(tmp_path: Path) -> None:
    """The bytes of the file are hashed as they are, a newline at the end included."""
    path = tmp_path / "app-compose.json"
    path.write_bytes(app_compose_from_docker_compose(PINNED, name="\x1b[31mred") + b"\n")
    digest = hash_of(path.read_bytes())

    result = CliRunner(mix_stderr=False).invoke(compose_hash, [str(path)])

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"compose hash    {digest.hex()}",
        f"default app id  {default_app_id(digest).hex()}",
        "name            '\\x1b[31mred'",
        "key provider    kms",
    ]


def test_the_hash_as_json() -> None:
    """The same facts, what an SDK would hash, and the services that can change."""
    raw = app_compose_from_docker_compose(TAGGED, name="app", key_provider="none")

    result = CliRunner(mix_stderr=False).invoke(compose_hash, ["-", "--json"], input=raw)

    assert json.loads(result.stdout) == {
        "compose_hash": hash_of(raw).hex(),
        "default_app_id": default_app_id(hash_of(raw)).hex(),
        "name": "app",
        "sdk_hash": sdk_compose_hash(json.loads(raw)).hex(),
        "key_provider": "none",
        "unpinned_services": ["web"],
    }


def test_a_docker_compose_is_no_app_compose(docker_compose: Path) -> None:
    """Hashing the wrong file is refused, rather than giving a hash of nothing."""
    result = CliRunner(mix_stderr=False).invoke(compose_hash, [str(docker_compose)])

    assert isinstance(result.exception, ComposeMalformedError)
    assert str(result.exception).startswith("app-compose: not JSON")


def test_an_app_that_cannot_start_still_has_a_hash() -> None:
    """Its docker-compose file is told to be broken, and the hash is that of the bytes."""
    raw = json.dumps(
        {"manifest_version": 2, "name": "x", "runner": "docker-compose", "docker_compose_file": "services: {}"}
    ).encode()

    result = CliRunner(mix_stderr=False).invoke(compose_hash, ["-"], input=raw)

    assert result.exit_code == 0
    assert hash_of(raw).hex() in result.stdout
    assert "warning: docker_compose_file: docker-compose: services: want a mapping" in result.stderr


def test_a_broken_file_is_one_sentence_and_exit_2(tmp_path: Path) -> None:
    """As a program: no traceback, nothing on standard output."""
    path = tmp_path / "docker-compose.yaml"
    path.write_text("version: '3'\n")

    run = subprocess.run(
        [sys.executable, "-m", "dstack.cli", "compose", str(path)], capture_output=True, text=True, check=False
    )

    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr == "dstack: docker-compose: the key 'services' is missing\n"
