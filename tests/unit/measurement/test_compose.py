"""app-compose.json: hashed as bytes, read strictly, written as the deploy tool writes it."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import pytest

from dstack.errors import ComposeMalformedError
from dstack.measurement.compose import (
    MAX_APP_COMPOSE,
    AppCompose,
    app_compose_from_docker_compose,
    compose_hash,
    default_app_id,
    parse_app_compose,
)

Load = Callable[[str], Any]

DOCKER_COMPOSE = b"services:\n  web:\n    image: nginx\n"
LEAST: dict[str, object] = {
    "manifest_version": 2,
    "name": "demo",
    "runner": "docker-compose",
    "docker_compose_file": DOCKER_COMPOSE.decode(),
}


def parse(**members: object) -> AppCompose:
    """Read the least app-compose.json with *members* besides."""
    return parse_app_compose(json.dumps({**LEAST, **members}).encode())


def test_hash_and_app_id_are_those_of_the_golden_data(golden: Load) -> None:
    """One byte more, other line ends or other order give another hash and another app."""
    for case in golden("compose_hash.json")["cases"]:
        digest = compose_hash(b64decode(case["compose_utf8_base64"]))
        assert digest.hex() == case["compose_hash"]
        assert default_app_id(digest).hex() == case["default_app_id"]


def test_writing_is_byte_for_byte_that_of_the_deploy_tool(golden: Load) -> None:
    """Indented by four, in order, with non-ASCII letters as they are, without a newline at the end."""
    cases = [case for case in golden("deploy_tool_compose.json")["cases"] if case["how"].startswith("CLI")]
    for case in cases:
        name = json.loads(case["text"])["name"]

        raw = app_compose_from_docker_compose(DOCKER_COMPOSE, name=name, gateway_enabled=True, allowed_envs=("A",))

        assert raw.decode() == case["text"]
        assert compose_hash(raw).hex() == case["compose_hash"]
    assert len(cases) == 2


def test_reading_what_was_written() -> None:
    """Every choice of the writer is what the reader sees."""
    raw = app_compose_from_docker_compose(
        DOCKER_COMPOSE,
        name="demo",
        key_provider="local",
        key_provider_id=b"\xab",
        gateway_enabled=True,
        public_logs=True,
        public_sysinfo=True,
        allowed_envs=("A", "B_2"),
        no_instance_id=True,
        storage_fs="ext4",
        event_log_version=2,
    )

    assert parse_app_compose(raw) == AppCompose(
        raw=raw,
        manifest_version=2,
        name="demo",
        runner="docker-compose",
        docker_compose_file=DOCKER_COMPOSE.decode(),
        key_provider="local",
        key_provider_id=b"\xab",
        gateway_enabled=True,
        no_instance_id=True,
        storage_fs="ext4",
        event_log_version=2,
        public_logs=True,
        public_sysinfo=True,
        public_tcbinfo=True,
        allowed_envs=("A", "B_2"),
        secure_time=False,
        requirements=(),
        init_scripts=(),
        gpu_policy_hash=parse().gpu_policy_hash,
    )


def test_defaults_are_those_of_a_guest() -> None:
    """What the file does not say is what a guest assumes."""
    app = parse()

    assert (app.key_provider, app.key_provider_id, app.storage_fs) == ("none", b"", None)
    assert (app.gateway_enabled, app.no_instance_id, app.public_logs, app.public_sysinfo) == (False,) * 4
    assert (app.public_tcbinfo, app.secure_time) == (True, True)
    assert (app.event_log_version, app.allowed_envs, app.init_scripts) == (1, (), ())
    assert app.gpu_policy_hash == sha256(b"{}").digest()
    assert app.compose_hash == sha256(json.dumps(LEAST).encode()).digest()


@pytest.mark.parametrize(
    ("members", "provider"),
    [
        ({"kms_enabled": True}, "kms"),
        ({"kms_enabled": True, "local_key_provider_enabled": True}, "kms"),
        ({"features": ["kms"]}, "kms"),
        ({"local_key_provider_enabled": True}, "local"),
        ({"key_provider": "none", "kms_enabled": True}, "none"),
        ({"key_provider": None, "kms_enabled": True}, "kms"),
        ({"key_provider": "tpm"}, "tpm"),
    ],
)
def test_the_key_provider_is_chosen_as_a_guest_does(members: dict[str, object], provider: str) -> None:
    """`key_provider` wins over the older flags, and KMS over local."""
    assert parse(**members).key_provider == provider


@pytest.mark.parametrize("members", [{"gateway_enabled": True}, {"tproxy_enabled": True}, {"features": ["tproxy-net"]}])
def test_each_spelling_turns_the_gateway_on(members: dict[str, object]) -> None:
    """Three releases had three names for it."""
    assert parse(**members).gateway_enabled


@pytest.mark.parametrize(("version", "read"), [(1, 1), (2, 2), ("1", 1), ("2", 2), ("3", 3)])
def test_manifest_versions(version: object, read: int) -> None:
    """Version 3 is a string, so that guests which know numbers only refuse it."""
    assert parse(manifest_version=version).manifest_version == read


@pytest.mark.parametrize("version", [0, 3, 4, True, 2.0, "03", "+3", "0", "", "4", None])
def test_another_manifest_version_is_refused(version: object) -> None:
    """Among them number 3 and numbers that are no integers."""
    with pytest.raises(ComposeMalformedError, match='manifest_version: want 1, 2, "1", "2" or "3"'):
        parse(manifest_version=version)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"name": 1}, "app-compose: name: want a string, got a number"),
        ({"runner": "podman"}, "runner: want one of docker-compose, bash, nerdctl-compose, got 'podman'"),
        ({"runner": "nerdctl-compose"}, "runner nerdctl-compose: want manifest_version 3, got 2"),
        ({"docker_compose_file": None}, "runner docker-compose: member 'docker_compose_file' is missing"),
        ({"key_provider": "sgx"}, "key_provider: want one of none, local, kms, tpm, got 'sgx'"),
        ({"key_provider_id": "0"}, "key_provider_id: want an even number of hexadecimal digits"),
        ({"no_instance_id": "yes"}, "no_instance_id: want true or false, got a string"),
        ({"no_instance_id": None}, "no_instance_id: want true or false, got null"),
        ({"storage_fs": "btrfs"}, "storage_fs: want one of zfs, ext4, got 'btrfs'"),
        ({"event_log_version": 0}, "event_log_version: want 1 or 2, got 0"),
        ({"event_log_version": 3}, "event_log_version: want 0 to 2, got 3"),
        ({"allowed_envs": "A"}, "allowed_envs: want an array, got a string"),
        ({"requirements": {}}, "requirements: want manifest_version 3, got 2"),
        ({"init_script": ["a", "b"]}, "init_script: want manifest_version 3 for more than one, got 2"),
        ({"manifest_version": "3", "requirements": {"magic": 1}}, "requirements: unknown member 'magic'"),
        ({"manifest_version": "3", "requirements": {"gpu_policy": []}}, "gpu_policy: want a JSON object, got an array"),
        (
            {"manifest_version": "3", "requirements": {"gpu_policy": False}},
            "gpu_policy: want a JSON object, got a boolean",
        ),
        ({"manifest_version": "3", "requirements": {"gpu_policy": None}}, "gpu_policy: want a JSON object, got null"),
        ({"manifest_version": "3", "requirements": {"gpu_policy": {"a": 1}}}, "gpu_policy: unknown member 'a'"),
        (
            {"manifest_version": "3", "requirements": {"gpu_policy": {"attest_gpu": 1}}},
            "gpu_policy: attest_gpu: want true or false, got a number",
        ),
        (
            {"manifest_version": "3", "requirements": {"gpu_policy": {"rego": True}}},
            "gpu_policy: rego: want a string, got a boolean",
        ),
        ({"manifest_version": "3", "init_script": ["x"] * 6}, "init_script: want at most 5, got 6"),
    ],
)
def test_a_member_of_another_form_is_refused(members: dict[str, object], message: str) -> None:
    """Each with one sentence that names it."""
    with pytest.raises(ComposeMalformedError, match=message):
        parse(**members)


@pytest.mark.parametrize("missing", ["manifest_version", "name", "runner", "docker_compose_file"])
def test_a_required_member_is_missed(missing: str) -> None:
    """A file without it is refused."""
    with pytest.raises(ComposeMalformedError, match=missing):
        parse_app_compose(json.dumps({name: value for name, value in LEAST.items() if name != missing}).encode())


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"services: {}", "app-compose: not JSON"),
        (b'{"name":"a","name":"b"}', "member 'name' appears twice"),
        (b"[]", "app-compose: want a JSON object, got an array"),
        (b" " * (MAX_APP_COMPOSE + 1), "app-compose: want at most 52428800 bytes"),
    ],
)
def test_a_file_of_another_form_is_refused(raw: bytes, message: str) -> None:
    """Also one that says something twice, which two readers would read differently."""
    with pytest.raises(ComposeMalformedError, match=message):
        parse_app_compose(raw)


def test_version_3_tells_its_demands() -> None:
    """Requirements are named, scripts kept in order, and the GPU policy hashed in its canonical form."""
    app = parse(
        manifest_version="3",
        requirements={"platforms": ["tdx"], "gpu_policy": {"rego": "package policy", "attest_gpu": True}},
        init_script=["one", "two"],
    )

    assert app.requirements == ("gpu_policy", "platforms")
    assert app.init_scripts == ("one", "two")
    assert app.gpu_policy_hash == sha256(b'{"attest_gpu":true,"rego":"package policy"}').digest()


def test_a_shell_app_needs_no_docker_compose() -> None:
    """The runner `bash` has a script instead."""
    assert parse(runner="bash", docker_compose_file=None, init_script="x").docker_compose_file is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "name: want 1 to 256 characters, got 0"),
        ({"name": "x" * 257}, "name: want 1 to 256 characters, got 257"),
        ({"name": "\ud800"}, "name: want Unicode text"),
        ({"key_provider": "tpm"}, "key_provider: want one of none, local, kms, got 'tpm'"),
        ({"allowed_envs": ("A", "1B")}, "allowed_envs: want names of variables, got '1B'"),
        ({"allowed_envs": ("A\n",)}, "allowed_envs: want names of variables"),
        ({"storage_fs": "xfs"}, "storage_fs: want one of zfs, ext4, got 'xfs'"),
        ({"event_log_version": 3}, "event_log_version: want 0 to 2, got 3"),
    ],
)
def test_nothing_is_written_that_no_guest_would_take(change: dict[str, Any], message: str) -> None:
    """A wrong choice is refused when the file is made."""
    with pytest.raises(ComposeMalformedError, match=message):
        app_compose_from_docker_compose(DOCKER_COMPOSE, **{"name": "demo", **change})


def test_a_broken_docker_compose_is_not_wrapped() -> None:
    """What cannot start gets no compose hash."""
    with pytest.raises(ComposeMalformedError, match="docker-compose: the key 'services' is missing"):
        app_compose_from_docker_compose(b"version: '3'\n", name="demo")
