"""`dstack measure`: registers from files, compared with quotes; what cannot be computed is never a success."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from dstack.cli.measure import command
from dstack.errors import DstackError
from dstack.measurement.acpi import derive_acpi_blobs
from dstack.measurement.compose import app_compose_from_docker_compose
from dstack.measurement.document import parse_measurement_document
from dstack.measurement.event_log import RuntimeEvent, logged, serialise_event_log
from dstack.measurement.identities import mr_aggregated, mr_key_provider, mr_system
from dstack.measurement.mr_config_id import ConfigDocument, mr_config_id_v3, serialise_config_document
from dstack.measurement.rtmr3 import OUR_SEQUENCE, BootInputs, boot_events, predict_rtmr3
from dstack.measurement.vm_config import serialise_vm_config
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.values import AppId, ComposeHash, InstanceId, Register, ReportData
from dstack.vmm.acpi_sources import capture
from tests.attested_world import AttestedWorld, attested_world
from tests.image_parts import acpi_tables

GIB = 2**30
REGISTERS = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "mr_config_id")
INSTANCE = InstanceId(b"i" * 20)
PROVIDER = b"public key of the KMS"
COMPOSE = app_compose_from_docker_compose(
    b"services:\n  web:\n    image: nginx@sha256:" + b"0" * 64 + b"\n", name="measured", key_provider="kms"
)
APP = ["--instance-id", INSTANCE.hex(), "--key-provider-id", PROVIDER.hex()]


class Place:
    """An image, an app and a store of tables on disk, and quotes of machines that run them."""

    def __init__(self, world: AttestedWorld, folder: Path) -> None:
        self.world, self.folder = world, folder
        self.image, self.store, self.compose = folder / "image", folder / "store", folder / "app-compose.json"
        world.image.save(self.image)
        self.compose.write_bytes(COMPOSE)
        self.config = world.image.vm_config()
        self.blobs = derive_acpi_blobs(acpi_tables())
        capture(self.config, self.blobs, self.store, note="made for a test")

    def write(self, name: str, content: object) -> str:
        """Write a file, and give its path."""
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        return str(path)

    def answer(self, registers: dict[str, str], events: tuple[Any, ...] = (), **change: Register) -> str:
        """A GetQuote answer of a machine with these registers."""
        values = {name: Register.from_hex(registers[name]) for name in REGISTERS if name in registers}
        td = TdRegisters(values.pop("mrtd"), values["rtmr0"], values["rtmr1"], values["rtmr2"], values["rtmr3"])
        quote = make_quote(self.world.pki, registers=replace(td, **change), report_data=ReportData(bytes(64)))
        members = {
            "quote": quote.hex(),
            "event_log": serialise_event_log(events),
            "vm_config": serialise_vm_config(self.config),
        }
        return self.write("get-quote.json", members)

    def honest(self, **change: Any) -> str:
        """The answer of a machine that is what the files say, with captured ACPI tables."""
        facts = run_json(self.image, *self.shape, *self.acpi, "--compose", self.compose, *APP)
        return self.answer({**facts["registers"], **change})

    @property
    def shape(self) -> list[str]:
        """Options of the machine's shape."""
        return ["--vm-config", self.write("vm.json", serialise_vm_config(self.config).encode())]

    @property
    def acpi(self) -> list[str]:
        """The option of the store."""
        return ["--acpi", f"captured:{self.store}"]


def run(*arguments: object) -> Result:
    """Run the command in this process."""
    return CliRunner(mix_stderr=False).invoke(command, [str(each) for each in arguments])


def run_json(*arguments: object, code: int = 0) -> Any:
    """Run it with --json, expecting an exit code."""
    result = run(*arguments, "--json")
    assert result.exit_code == code, (result.exception, result.stdout, result.stderr)
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def world() -> AttestedWorld:
    """Give one simulated maker and image."""
    return attested_world()


@pytest.fixture
def place(world: AttestedWorld, tmp_path: Path) -> Place:
    """Give them on disk."""
    return Place(world, tmp_path)


def test_an_image_has_the_registers_that_its_machines_show(place: Place) -> None:
    """MRTD, RTMR1 and RTMR2 from the files are those that the image's document, measured at its build, predicts."""
    log = place.world.image.boot_log(place.config)
    from_log = place.write("log.json", serialise_event_log(log).encode())

    facts = run_json(place.image, *place.shape, "--acpi", f"from-log:{from_log}")

    assert facts["registers"]["mrtd"] == place.world.image.document.mrtd_single_pass.hex()
    assert [event["digest"] for event in facts["events"]] == [event.digest.hex() for event in log]
    assert facts["identities"]["os_image_hash"] == place.world.image.os_image_hash.hex()
    assert facts["acpi"]["source"] == "from-log"
    assert facts["acpi_tables_verified"] is False


def test_an_honest_machine_matches_in_full(place: Place) -> None:
    """All registers are computed and equal: exit 0, and the last line says matched."""
    answer = place.honest()
    arguments = [place.image, *place.shape, *place.acpi, "--compose", place.compose, *APP, "--compare", answer]

    facts = run_json(*arguments)
    result = run(*arguments)

    assert (facts["verdict"], facts["full_match"]) == ("matched", True)
    assert {each["verdict"] for each in facts["comparison"]} == {"matched"}
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].split() == ["verdict", "matched"]


@pytest.mark.parametrize("register", REGISTERS[:5])
def test_every_register_is_compared(place: Place, register: str) -> None:
    """One that differs is named with both values, and exits 1 whatever the others say."""
    answer = place.honest(**{register: "ab" * 48})

    result = run(place.image, *place.shape, *place.acpi, "--compose", place.compose, *APP, "--compare", answer)

    lines = result.stdout.splitlines()
    assert result.exit_code == 1
    assert lines[-1].split() == ["verdict", "mismatched"]
    assert f"{register:15} mismatched" in lines
    assert f"{'':15} quote    {'ab' * 48}" in lines


def test_digests_from_the_log_are_never_a_full_match(place: Place) -> None:
    """RTMR0 that is equal with the machine's own ACPI digests is not computable; only a flag takes it, and says so."""
    events = place.world.image.boot_log(place.config)
    from_log = place.write("log.json", serialise_event_log(events).encode())
    acpi = ["--acpi", f"from-log:{from_log}"]
    facts = run_json(place.image, *place.shape, *acpi, "--compose", place.compose, *APP)
    answer = place.answer(facts["registers"], events)
    arguments = [place.image, *acpi, "--compose", place.compose, *APP, "--compare", answer]

    strict, relaxed = run_json(*arguments, code=3), run_json(*arguments, "--accept-unverified-acpi")

    assert (strict["verdict"], strict["full_match"]) == ("not computable", False)
    assert (relaxed["verdict"], relaxed["full_match"]) == ("matched", False)
    said = run(*arguments, "--accept-unverified-acpi").stdout.splitlines()[-1]
    assert said.endswith("matched, but not in full (the content of the ACPI tables was not seen)")


def test_the_flag_for_acpi_takes_nothing_else(place: Place) -> None:
    """A machine whose RTMR0 differs, or whose RTMR3 was not computed, does not match with it either."""
    events = place.world.image.boot_log(place.config)
    acpi = ["--acpi", f"from-log:{place.write('log.json', serialise_event_log(events).encode())}"]
    registers = run_json(place.image, *place.shape, *acpi, "--compose", place.compose, *APP)["registers"]
    whole = ["--compose", place.compose, *APP, "--accept-unverified-acpi"]

    other = place.answer({**registers, "rtmr0": "00" * 48}, events)
    assert run_json(place.image, *acpi, *whole, "--compare", other, code=1)["verdict"] == "mismatched"
    same = place.answer(registers, events)
    without_app = run_json(place.image, *acpi, "--accept-unverified-acpi", "--compare", same, code=3)
    assert without_app["verdict"] == "not computable"


@pytest.mark.parametrize(
    ("left_out", "register", "reason"),
    [
        ("--acpi", "rtmr0", "it needs ACPI digests: --acpi"),
        ("--compose", "rtmr3", "it needs the app: --compose"),
        ("--instance-id", "rtmr3", "--instance-id: it is measured"),
        ("--key-provider-id", "rtmr3", "this boot sequence measures key_provider_id, and none was given"),
    ],
)
def test_what_is_missing_is_named_and_no_success(place: Place, left_out: str, register: str, reason: str) -> None:
    """Not computable exits 3, and says which input would be needed."""
    answer = place.honest()
    arguments = [*place.acpi, "--compose", place.compose, *APP]
    at = arguments.index(left_out)
    arguments[at : at + 2] = []
    if left_out == "--compose":
        arguments = arguments[:2]

    facts = run_json(place.image, *place.shape, *arguments, "--compare", answer, code=3)

    noted = {each["register"]: each for each in facts["comparison"]}
    assert facts["verdict"] == "not computable"
    assert noted[register]["verdict"] == "not computable"
    assert reason in noted[register]["note"]


def test_a_mismatch_outweighs_what_is_missing(place: Place) -> None:
    """A wrong MRTD exits 1 although RTMR3 was not computed."""
    answer = place.honest(mrtd="11" * 48)

    assert run_json(place.image, *place.shape, *place.acpi, "--compare", answer, code=1)["verdict"] == "mismatched"


def test_a_comparison_can_be_narrowed_and_says_so(place: Place) -> None:
    """`--only` compares what was asked, and the verdict names what was left out."""
    answer = place.honest(rtmr0="22" * 48)
    arguments = [place.image, *place.shape, "--compare", answer, "--only", "mrtd", "--only", "rtmr1"]

    facts, result = run_json(*arguments), run(*arguments)

    assert (facts["verdict"], facts["full_match"]) == ("matched", False)
    assert "not in full (not compared: rtmr0, rtmr2, rtmr3" in result.stdout.splitlines()[-1]


def test_a_store_without_this_shape_is_no_answer(place: Place) -> None:
    """Tables of another number of CPUs are not taken."""
    other = replace(place.config, cpu_count=7)
    shape = place.write("other.json", serialise_vm_config(other).encode())

    facts = run_json(place.image, "--vm-config", shape, *place.acpi, code=3)

    assert "rtmr0" not in facts["registers"]
    assert facts["not_computable"]["rtmr0"].endswith("has no tables for this shape")


def test_without_a_comparison_what_was_asked_for_must_be_there(place: Place) -> None:
    """No --acpi: RTMR0 was not asked for, exit 0. A --compose that does not suffice: exit 3."""
    assert "rtmr0" in run_json(place.image, *place.shape)["not_computable"]
    assert "rtmr3" in run_json(place.image, *place.shape, "--compose", place.compose, code=3)["not_computable"]


def test_identities_follow_from_the_registers(place: Place) -> None:
    """The digests that the contracts see, at boot and later."""
    facts = run_json(place.image, *place.shape, *place.acpi, "--compose", place.compose, *APP, "--mr-config-id", "none")

    inputs = BootInputs(
        app_id=AppId.from_hex(facts["identities"]["app_id"]),
        compose_hash=parse_hash(facts),
        instance_id=INSTANCE,
        key_provider="kms",
        key_provider_id=PROVIDER,
        os_image_hash=place.world.image.os_image_hash,
        storage_fs="zfs",
    )
    events = boot_events(OUR_SEQUENCE, inputs)
    system = [Register.from_hex(facts["registers"][name]) for name in REGISTERS[:4]]
    zero = Register(bytes(48))
    others = {"mr_config_id": zero, "mr_owner": zero, "mr_owner_config": zero}
    payload = next(event.payload for event in events if event.name == "key-provider")
    assert facts["registers"]["rtmr3"] == predict_rtmr3(events).hex()
    assert facts["identities"]["mr_system"] == mr_system(*system, mr_key_provider(payload)).hex()
    assert facts["identities"]["mr_system_at_boot"] == mr_system(*system, mr_key_provider(None)).hex()
    assert facts["identities"]["mr_aggregated"] == mr_aggregated(*system, predict_rtmr3(events), **others).hex()
    at_boot = predict_rtmr3(events[:5])
    assert facts["identities"]["mr_aggregated_at_boot"] == mr_aggregated(*system, at_boot, **others).hex()


def parse_hash(facts: Any) -> ComposeHash:
    """The compose hash as a value."""
    return ComposeHash.from_hex(facts["identities"]["compose_hash"])


@pytest.mark.parametrize("form", ["v1", "v2"])
def test_the_quotes_own_form_of_mrconfigid_is_computed(place: Place, form: str) -> None:
    """Its first byte says the form; the content must be that of this app."""
    registers = run_json(
        place.image, *place.shape, *place.acpi, "--compose", place.compose, *APP, "--mr-config-id", form
    )["registers"]
    arguments = [place.image, *place.shape, *place.acpi, "--compose", place.compose, *APP, "--compare"]
    bound = Register.from_hex(registers["mr_config_id"])
    wrong = Register(bound[:1] + bytes(47))

    assert run_json(*arguments, place.answer(registers, mr_config_id=bound))["full_match"] is True
    facts = run_json(*arguments, place.answer(registers, mr_config_id=wrong), code=1)
    assert [each["register"] for each in facts["comparison"] if each["verdict"] == "mismatched"] == ["mr_config_id"]


def test_a_version_3_mrconfigid_needs_its_document(place: Place) -> None:
    """Without it nothing is known; with it, the document must be about this app."""
    registers = run_json(place.image, *place.shape, *place.acpi, "--compose", place.compose, *APP)["registers"]
    facts = run_json(place.image, *place.shape, "--compose", place.compose, *APP)
    document = serialise_config_document(ConfigDocument(compose_hash=parse_hash(facts), key_provider="kms"))
    answer = place.answer(registers, mr_config_id=mr_config_id_v3(document))
    arguments = [place.image, *place.shape, *place.acpi, "--compose", place.compose, *APP, "--compare", answer]

    assert run_json(*arguments, code=3)["not_computable"]["mr_config_id"].startswith("it needs the document")
    path = place.write("mr_config.json", document)
    assert run_json(*arguments, "--mr-config-id", path)["verdict"] == "matched"
    foreign = document.replace(parse_hash(facts).hex().encode(), b"00" * 32)
    refused = run(*arguments, "--mr-config-id", place.write("foreign.json", foreign))
    assert "its compose hash is not that of the app" in str(refused.exception)


def test_what_the_app_added_is_taken_from_the_log(place: Place) -> None:
    """Events behind system-ready change RTMR3 of the quote; the boot's events must still be those predicted."""
    facts = run_json(place.image, *place.shape, *place.acpi, "--compose", place.compose, *APP)
    boot = [
        RuntimeEvent(each["event"], bytes.fromhex(each["event_payload"]))
        for each in facts["events"]
        if each["imr"] == 3
    ]
    everything = (*boot, RuntimeEvent("app-id", b"an event that pretends"))
    registers = {**facts["registers"], "rtmr3": predict_rtmr3(everything).hex()}
    answer = place.answer(registers, tuple(map(logged, everything)))

    assert (
        run_json(place.image, *place.shape, *place.acpi, "--compose", place.compose, *APP, "--compare", answer)[
            "full_match"
        ]
        is True
    )


def test_a_document_stands_for_the_image(place: Place) -> None:
    """The document alone, or a VM config that carries it, gives the same registers as the files."""
    document = place.image / "measurement.tdx.cbor"
    carried = place.write("carried.json", serialise_vm_config(place.config).encode())
    wanted = run_json(place.image, *place.shape, *place.acpi)["registers"]

    assert run_json(document, *place.shape, *place.acpi)["registers"] == wanted
    assert run_json(carried, *place.acpi)["registers"] == wanted
    assert (
        run_json(document, "--memory", "2G", "--cpus", 2, "--qemu-version", "9.1.0", *place.acpi)["registers"] == wanted
    )


def test_a_document_can_be_written(place: Place, tmp_path: Path) -> None:
    """It is the one that the image carries, byte for byte."""
    path = tmp_path / "made.cbor"

    run_json(place.image, *place.shape, "--write-document", path)

    assert path.read_bytes() == (place.image / "measurement.tdx.cbor").read_bytes()
    assert parse_measurement_document(path.read_bytes()) == place.world.image.document


def test_page_order_follows_version_or_option(place: Place) -> None:
    """QEMU 8 adds all pages first; the option says the same in honest words."""
    document = place.world.image.document

    def measured(*options: object) -> str:
        return str(run_json(place.image, "--memory", "4G", *options)["registers"]["mrtd"])

    assert measured("--qemu-version", "8.2.2") == document.mrtd_two_pass.hex()
    assert measured("--qemu-version", "9.0.0") == document.mrtd_single_pass.hex()
    assert measured() == document.mrtd_single_pass.hex()
    assert measured("--qemu-version", "8.2.2", "--page-order", "single") == document.mrtd_single_pass.hex()
    assert measured("--page-order", "two") == document.mrtd_two_pass.hex()


def spoil(name: str, content: bytes | None = None) -> Callable[[Path], None]:
    """Change or remove a file of an image."""

    def change(folder: Path) -> None:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoil("initramfs.cpio.gz", b"another"), "initramfs.cpio.gz: not the file that sha256sum.txt lists"),
        (spoil("bzImage", b"no kernel"), "bzImage: not the file that sha256sum.txt lists"),
        (spoil("ovmf.fd", b""), "ovmf.fd: not the file that sha256sum.txt lists"),
        (spoil("ovmf.fd"), "ovmf.fd: cannot be read"),
        (spoil("sha256sum.txt", b"00" * 32 + b"  metadata.json\n"), "metadata.json: not the file"),
        (spoil("metadata.json", b"{}"), "metadata.json: member 'bios' is missing"),
        (
            spoil("metadata.json", b'{"bios":"../ovmf.fd","kernel":"a","initrd":"b","cmdline":""}'),
            "bios: want a plain file name, got '../ovmf.fd'",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_an_image_with_another_file_is_refused(place: Place, change: Callable[[Path], None], message: str) -> None:
    """Files are compared with sha256sum.txt, and a wrong file is the reason that is given."""
    change(place.image)

    result = run(place.image, "--memory", "2G")

    assert isinstance(result.exception, DstackError)
    assert message in str(result.exception)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "want the VM's shape: --vm-config FILE, or --memory"),
        (["--cpus", "2"], "--memory: it is measured, and was not given"),
        (["--memory", "lots"], "--memory: want a size such as 2G or 4096M, got 'lots'"),
        (["--memory", "99999999T"], "--memory: want a size"),
        (["--memory", "100K"], "memory size: want at least 163840 bytes, got 102400"),
        (["--memory", "2G", "--qemu-version", "9.2"], "qemu_version: want MAJOR.MINOR.PATCH, got '9.2'"),
        (["--memory", "2G", "--qemu-version", "7.2.0"], "qemu_version: want 8.0.0 or later, got 7.2.0"),
        (["--memory", "2G", "--acpi", "guess"], "--acpi: want own-qemu[:PROGRAM], captured:PATH"),
        (["--memory", "2G", "--acpi", "captured"], "--acpi: want captured: and a name behind it"),
        (["--memory", "2G", "--acpi", "helper:/nonexistent"], "/nonexistent: cannot be started"),
        (["--memory", "2G", "--acpi", "own-qemu:/nonexistent"], "/nonexistent: cannot be started"),
        (["--memory", "2G", "--acpi", "captured:/nonexistent"], "index.json: cannot be read"),
        (["--memory", "2G", "--vm-config", "x"], "--vm-config says the whole shape; want no --memory beside it"),
        (["--memory", "2G", "--compare", "IMAGE"], "want an event log, a quote, an answer"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_options_that_say_too_little_or_too_much_are_refused(place: Place, options: list[str], message: str) -> None:
    """Each by its name."""
    options = [str(place.image / "metadata.json") if each == "IMAGE" else each for each in options]

    result = run(place.image, *options)

    assert isinstance(result.exception, DstackError), result.stdout
    assert message in str(result.exception)


def test_a_vm_config_of_another_image_is_refused(place: Place) -> None:
    """Its os_image_hash is compared with the folder's."""
    other = replace(place.config, os_image_hash=type(place.config.os_image_hash)(bytes([1]) * 32))

    result = run(place.image, "--vm-config", place.write("vm.json", serialise_vm_config(other).encode()))

    assert "os_image_hash: the VM config says 0101" in str(result.exception)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"swtpm": True}, "swtpm: a machine with a software TPM"),
        ({"ovmf_variant": "stable202505"}, "ovmf_variant: want pre202505, got 'stable202505'"),
        ({"cpu_count": 0}, "cpu_count: want at least one"),
    ],
)
def test_shapes_that_nobody_can_measure_are_refused(place: Place, change: dict[str, Any], message: str) -> None:
    """Before anything is shown."""
    config = serialise_vm_config(replace(place.config, **change)).encode()

    result = run(place.image, "--vm-config", place.write("vm.json", config))

    assert message in str(result.exception)


@pytest.mark.parametrize("memory", [GIB, 2 * GIB - 4096, 2 * GIB + 4096, 0xB000_0000 - 4096])
def test_a_document_says_nothing_of_other_memory(place: Place, memory: int) -> None:
    """Its kernel digest stands for 2 GiB, and for 2816 MiB and more."""
    result = run(place.image / "measurement.tdx.cbor", "--memory", memory)

    assert f"memory size: want 2147483648, or 2952790016 and more, got {memory}" in str(result.exception)


def test_the_instance_id_is_taken_from_the_log_that_is_compared(place: Place) -> None:
    """It is random; that RTMR3 follows from it and is equal proves it. A wrong one does not match."""
    facts = run_json(place.image, *place.shape, *place.acpi, "--compose", place.compose, *APP)
    boot = tuple(
        logged(RuntimeEvent(each["event"], bytes.fromhex(each["event_payload"])))
        for each in facts["events"]
        if each["imr"] == 3
    )
    arguments = [place.image, *place.acpi, "--compose", place.compose, *APP[2:], "--compare"]

    matched = run_json(*arguments, place.answer(facts["registers"], boot))
    other = tuple(
        logged(RuntimeEvent("instance-id", b"j" * 20)) if each.name == "instance-id" else each for each in boot
    )
    mismatched = run_json(*arguments, place.answer(facts["registers"], other), code=1)

    assert (matched["full_match"], matched["instance_id_from_log"]) == (True, INSTANCE.hex())
    assert [each["register"] for each in mismatched["comparison"] if each["verdict"] == "mismatched"] == ["rtmr3"]


def test_a_certificate_names_the_kms(place: Place) -> None:
    """Its public key is what is measured; a file without one, or a key besides, is refused."""
    pem = certificate()
    path = place.write("ca.pem", pem.public_bytes(Encoding.PEM))
    spki = pem.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    instance = ["--instance-id", INSTANCE.hex()]

    by_file = run_json(place.image, *place.shape, "--compose", place.compose, *instance, "--kms-ca", path)
    by_key = run_json(place.image, *place.shape, "--compose", place.compose, *instance, "--key-provider-id", spki.hex())

    assert by_file["registers"]["rtmr3"] == by_key["registers"]["rtmr3"]
    both = run(place.image, *place.shape, "--compose", place.compose, *APP, "--kms-ca", path)
    assert str(both.exception) == "--kms-ca: want it or --key-provider-id, got both"
    none = run(place.image, *place.shape, "--compose", place.compose, *instance, "--kms-ca", place.compose)
    assert str(none.exception) == f"--kms-ca: {place.compose}: want a certificate in PEM"


def certificate() -> x509.Certificate:
    """A certificate that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, datetime(2026, 1, 1), datetime(2036, 1, 1))
    return builder.sign(key, SHA256())


def test_the_other_page_order_is_recognised(place: Place) -> None:
    """An MRTD that differs only because the host's QEMU was said to be another is named so."""
    answer = place.honest()
    newer = [place.image, "--memory", "2G", "--cpus", "2", "--compare", answer, "--only", "mrtd", "--qemu-version"]

    note = run_json(*newer, "8.2.2", code=1)["comparison"][0]["note"]
    other = run_json(*newer, "8.2.2", "--compare", place.honest(mrtd="33" * 48), code=1)["comparison"][0]["note"]

    assert note == "it is this firmware, loaded in one pass (QEMU 9 and later): look at the host's QEMU version"
    assert other == ""


def test_tables_are_kept_for_later(place: Place, tmp_path: Path) -> None:
    """From any source that has them; from a log there are none to keep, and a store keeps its first answer."""
    blob = place.write("tables.bin", place.blobs.tables)
    kept, shape = tmp_path / "kept", place.shape

    first = run_json(place.image, *shape, "--acpi", f"captured:{blob}", "--keep-acpi", kept)
    again = run_json(place.image, *shape, "--acpi", f"captured:{kept}")

    assert first["registers"] == again["registers"]
    assert again["acpi"]["detail"].endswith(f"(captured: {blob})")
    twice = run(place.image, *shape, "--acpi", f"captured:{blob}", "--keep-acpi", kept)
    assert "it has tables for this shape already" in str(twice.exception)
    log = place.write("log.json", serialise_event_log(place.world.image.boot_log(place.config)).encode())
    none = run(place.image, *shape, "--acpi", f"from-log:{log}", "--keep-acpi", kept)
    assert str(none.exception) == "--keep-acpi: want tables, from own-qemu, captured or helper"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"quote":"00"}', "quote: want 1000 to 65536 bytes, got 1"),
        (b'{"event_log":"[]"}', "it holds no VM config"),
        (b'{"cpu_count":1}', "member 'os_image_hash' is missing"),
        (b'{"x":"\xff"}', "want UTF-8"),
        (b"[" * 99, "not JSON: "),
        (b"{" * 99, "not JSON: "),
        (b"\x00", "platform: want 1 bytes"),
    ],
    ids=str,
)
def test_files_that_hold_no_shape_are_refused(place: Place, content: bytes, message: str) -> None:
    """As a VM config, and as what is to be measured."""
    path = place.write("shape", content)

    result = run(place.image, "--vm-config", path)

    assert isinstance(result.exception, DstackError)
    assert message in str(result.exception)
    assert isinstance(run(path, "--memory", "2G").exception, DstackError)
