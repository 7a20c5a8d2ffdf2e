"""`dstack rtmr3`: the register that an auditor expects, or why it cannot be said."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dstack.cli.rtmr3 import command
from dstack.errors import DstackError, InputError, MeasurementMalformedError
from dstack.measurement.compose import app_compose_from_docker_compose, compose_hash, default_app_id, parse_app_compose
from dstack.measurement.event_log import RuntimeEvent, runtime_event_digest
from dstack.measurement.rtmr3 import BootInputs, boot_events, predict_legacy_rtmr3, predict_rtmr3
from dstack.values import AppId, Digest32, InstanceId, OsImageHash

DOCKER_COMPOSE = b"services:\n  web:\n    image: nginx\n"
KMS_APP = app_compose_from_docker_compose(DOCKER_COMPOSE, name="app", key_provider_id=b"\x30\x59")
CONSTANT_APP = app_compose_from_docker_compose(
    DOCKER_COMPOSE, name="app", key_provider="none", no_instance_id=True, storage_fs="ext4", event_log_version=2
)
INSTANCE, IMAGE = "17" * 20, "6f" * 32


def run(app: bytes, *options: str) -> Result:
    """Run the command with *app* on standard input."""
    return CliRunner(mix_stderr=False).invoke(command, ["-", *options], input=app)


def test_a_kms_app_is_predicted() -> None:
    """With what the auditor knows besides the file: instance, image, and another app id."""
    options = ("--instance-id", INSTANCE, "--os-image-hash", "0x" + IMAGE, "--app-id", "ab" * 20)

    result = run(KMS_APP, *options, "--json")

    inputs = BootInputs(
        app_id=AppId(b"\xab" * 20),
        compose_hash=compose_hash(KMS_APP),
        instance_id=InstanceId.from_hex(INSTANCE),
        key_provider="kms",
        key_provider_id=b"\x30\x59",
        os_image_hash=OsImageHash.from_hex(IMAGE),
        storage_fs="zfs",
    )
    events = boot_events("0.6-pre", inputs)
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert (facts["rtmr3"], facts["rtmr3_at_boot_mr_done"]) == (
        predict_rtmr3(events).hex(),
        predict_rtmr3(events[:5]).hex(),
    )
    assert [(each["event"], each["payload"], each["digest"]) for each in facts["events"]] == [
        (event.name, event.payload.hex(), runtime_event_digest(event).hex()) for event in events
    ]
    assert facts["events"][2]["depends_on"] == ["app-compose.json"]


def test_an_app_without_instance_id_has_one_register() -> None:
    """Nothing but the file is needed, whose file system and log version count."""
    result = run(CONSTANT_APP)

    digest = compose_hash(CONSTANT_APP)
    inputs = BootInputs(app_id=default_app_id(digest), compose_hash=digest, storage_fs="ext4")
    register = predict_rtmr3(boot_events("0.6-pre", inputs, version=2))
    lines = result.stdout.splitlines()
    assert (result.exit_code, lines[-1]) == (0, f"RTMR3             {register.hex()}")
    assert lines[3] == "instance-id       -"


def test_head_measures_scripts_and_gpu_policy_of_the_file() -> None:
    """They are read from the app-compose.json."""
    members = {
        **json.loads(CONSTANT_APP),
        "manifest_version": "3",
        "init_script": ["one", "two"],
        "requirements": {"gpu_policy": {"attest_gpu": False}},
    }

    result = run(json.dumps(members).encode(), "--sequence", "head", "--json")

    payloads = [
        (event["event"], event["payload"])
        for event in json.loads(result.stdout)["events"]
        if event["event"] in ("init-script-hash", "gpu-policy-hash")
    ]
    assert payloads == [
        ("init-script-hash", sha256(b"one").hexdigest()),
        ("init-script-hash", sha256(b"two").hexdigest()),
        ("gpu-policy-hash", sha256(b'{"attest_gpu":false}').hexdigest()),
    ]


def test_the_2024_image_measures_the_docker_compose_file() -> None:
    """The app id is the whole SHA-256 of the file."""
    rootfs, ca_cert = "bf" * 32, "66" * 32

    result = run(DOCKER_COMPOSE, "--sequence", "legacy", "--rootfs-hash", rootfs, "--ca-cert-hash", ca_cert, "--json")

    register = predict_legacy_rtmr3(
        Digest32.from_hex(rootfs), Digest32(sha256(DOCKER_COMPOSE).digest()), Digest32.from_hex(ca_cert)
    )
    assert json.loads(result.stdout) == {"rtmr3": register.hex(), "events": []}


def test_an_expected_register_is_compared() -> None:
    """Equal is exit 0; different is exit 1, and both values are shown."""
    register = json.loads(run(CONSTANT_APP, "--json").stdout)["rtmr3"]

    equal, different = run(CONSTANT_APP, "--expect", register), run(CONSTANT_APP, "--expect", "ab" * 48)

    assert (equal.exit_code, equal.stdout.splitlines()[-1]) == (0, "equal to --expect")
    assert different.exit_code == 1
    assert register in different.stdout
    assert different.stdout.splitlines()[-1].startswith(f"DIFFERENT         {'ab' * 48}")
    assert json.loads(run(CONSTANT_APP, "--expect", "ab" * 48, "--json").stdout)["equal"] is False


@pytest.mark.parametrize(
    ("app", "options", "message"),
    [
        (KMS_APP, ("--os-image-hash", IMAGE), "--instance-id: it is measured"),
        (CONSTANT_APP, ("--instance-id", INSTANCE), "--instance-id: the app-compose file says no_instance_id"),
        (CONSTANT_APP, ("--storage-fs", "zfs"), "--storage-fs: the app-compose file says ext4, got zfs"),
        (KMS_APP, ("--key-provider-id", "31", "--instance-id", INSTANCE), "accepts another one only"),
        (KMS_APP, ("--instance-id", "17"), "--instance-id: InstanceId: want 20 bytes, got 1"),
        (CONSTANT_APP, ("--expect", "zz"), "--expect: Register: want hexadecimal"),
        (DOCKER_COMPOSE, ("--sequence", "legacy"), "needs --rootfs-hash and --ca-cert-hash"),
    ],
    ids=["no instance", "instance", "file system", "key provider", "length", "expect", "legacy"],
)
def test_options_that_contradict_the_file_are_refused(app: bytes, options: tuple[str, ...], message: str) -> None:
    """No register is predicted from a contradiction or a gap."""
    result = run(app, *options)

    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)


def test_a_missing_fact_is_named() -> None:
    """With a KMS, the image is measured."""
    result = run(KMS_APP, "--instance-id", INSTANCE)

    assert isinstance(result.exception, MeasurementMalformedError)
    assert "measures os_image_hash, and none was given" in str(result.exception)


def test_a_pinned_key_provider_may_be_repeated() -> None:
    """Saying what the file says is no contradiction."""
    options = ("--instance-id", INSTANCE, "--os-image-hash", IMAGE)

    repeated = run(KMS_APP, *options, "--key-provider-id", "3059")

    assert not isinstance(repeated.exception, DstackError)
    assert repeated.stdout == run(KMS_APP, *options).stdout
    assert parse_app_compose(KMS_APP).key_provider_id == b"\x30\x59"


def test_a_difference_is_exit_1_of_the_program(tmp_path: Path) -> None:
    """The exit code passes through the frame."""
    path = tmp_path / "app-compose.json"
    path.write_bytes(CONSTANT_APP)

    process = subprocess.run(
        [sys.executable, "-m", "dstack.cli", "rtmr3", str(path), "--expect", "ab" * 48],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (process.returncode, process.stderr) == (1, "")


def test_an_attested_gpu_is_measured() -> None:
    """By its payload, between the GPU policy and the instance id; a machine without one has no such event."""
    with_gpu = json.loads(run(CONSTANT_APP, "--sequence", "head", "--gpu-attestation", "6770", "--json").stdout)
    without = json.loads(run(CONSTANT_APP, "--sequence", "head", "--json").stdout)

    names = [event["event"] for event in with_gpu["events"]]
    assert names[names.index("gpu-policy-hash") + 1 : names.index("instance-id")] == ["gpu-attestation"]
    assert [event for event in with_gpu["events"] if event not in without["events"]] == [
        {
            "event": "gpu-attestation",
            "payload": "6770",
            "digest": runtime_event_digest(RuntimeEvent("gpu-attestation", b"gp", 2)).hex(),
            "depends_on": ["attached GPUs"],
        }
    ]
