"""Properties of measurement: what is written is read again, order counts, and no input crashes a parser."""

from __future__ import annotations

import json
from base64 import b64encode
from contextlib import suppress
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dstack.errors import ComposeMalformedError, EventLogMalformedError, MeasurementMalformedError
from dstack.measurement.compose import app_compose_from_docker_compose, parse_app_compose
from dstack.measurement.docker_compose import parse_docker_compose
from dstack.measurement.document import MeasurementDocument, parse_measurement_document, serialise_measurement_document
from dstack.measurement.event_log import (
    RUNTIME_EVENT_TYPE,
    Event,
    RuntimeEvent,
    logged,
    parse_event_log,
    replay_event_log,
    runtime_event_digest,
    runtime_event_preimage,
    runtime_events,
    serialise_event_log,
)
from dstack.measurement.image import parse_checksum_file
from dstack.measurement.registers import ZERO_REGISTER, extend, replay
from dstack.measurement.rtmr3 import predict_rtmr3
from dstack.measurement.td_hob import PAGE, HobWitness, MemoryRange, parse_hob_witness, serialise_hob_witness
from dstack.measurement.vm_config import VmConfig, parse_vm_config, serialise_vm_config
from dstack.values import OsImageHash, Register

text = st.text(st.characters(codec="utf-8"), max_size=40)
payloads = st.binary(max_size=64)
runtime = st.builds(RuntimeEvent, text, payloads, st.sampled_from([1, 2]))
boot = st.builds(
    Event,
    imr=st.integers(0, 2),
    event_type=st.integers(0, 2**32 - 1).filter(lambda number: number != RUNTIME_EVENT_TYPE),
    digest=st.binary(min_size=1, max_size=48),
    name=text,
    payload=payloads,
)
logs = st.lists(boot | runtime.map(logged), max_size=12)
registers = st.binary(min_size=48, max_size=48).map(Register)


@st.composite
def witnesses(draw: st.DrawFn) -> HobWitness:
    """Draw sorted ranges with and without gaps, one of which is the TD HOB's."""
    at, ranges = draw(st.integers(0, 2**20)), []
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)), min_size=1, max_size=6)):
        ranges.append(MemoryRange((at + gap) * PAGE, length * PAGE))
        at += gap + length
    return HobWitness(draw(st.sampled_from(ranges)).start, tuple(ranges))


documents = st.builds(MeasurementDocument, registers, registers, registers, registers, registers, witnesses())
u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
versions = st.tuples(*[st.integers(0, 9999)] * 3).map(lambda parts: ".".join(map(str, parts)))
carried = st.none() | st.tuples(payloads, payloads)
configs = st.builds(
    lambda both, **fields: VmConfig(**fields, checksum_file=both and both[0], measurement=both and both[1]),
    both=carried,
    os_image_hash=st.binary(min_size=32, max_size=32).map(OsImageHash),
    cpu_count=u32,
    memory_size=u64,
    qemu_version=st.none() | versions,
    qemu_single_pass_add_pages=st.none() | st.booleans(),
    pic=st.none() | st.booleans(),
    ovmf_variant=st.none() | text,
    tdx_attestation_variant=st.sampled_from(["legacy", "lite"]),
    image=st.none() | text,
    host_share_mode=text.filter(bool),
    pci_hole64_size=u64,
    hugepages=st.booleans(),
    hotplug_off=st.booleans(),
    num_gpus=u32,
    num_nvswitches=u32,
    num_nics=u32,
    num_verity_volumes=u32,
    swtpm=st.booleans(),
)


@given(logs)
def test_a_log_that_was_written_is_read_again(log: list[Event]) -> None:
    """Any log, with names in any script, comes back as it was."""
    assert parse_event_log(serialise_event_log(log)) == tuple(log)


@given(logs)
def test_each_register_folds_its_own_events(log: list[Event]) -> None:
    """Interleaving registers changes none of them."""
    replayed = replay_event_log(log)

    for imr, register in replayed.items():
        assert register == reduce(extend, (event.extended for event in log if event.imr == imr), ZERO_REGISTER)
    assert replayed[3] == predict_rtmr3(runtime_events(log))


@given(st.lists(registers, min_size=2, max_size=6, unique=True), st.data())
def test_exchanging_two_events_shows(digests: list[Register], data: st.DataObject) -> None:
    """Two different digests in the other order give another register."""
    at = data.draw(st.integers(0, len(digests) - 2))
    exchanged = [*digests[:at], digests[at + 1], digests[at], *digests[at + 2 :]]

    assert replay(digests) != replay(exchanged)


@given(runtime, runtime)
def test_version_2_has_one_reading(one: RuntimeEvent, other: RuntimeEvent) -> None:
    """Different events of version 2 have different preimages, and no event has one in both versions."""
    first, second = (RuntimeEvent(event.name, event.payload, 2) for event in (one, other))

    assert (runtime_event_preimage(first) == runtime_event_preimage(second)) == (first == second)
    assert runtime_event_digest(first) != runtime_event_digest(RuntimeEvent(one.name, one.payload, 1))


@given(witnesses())
def test_a_witness_that_was_written_is_read_again(witness: HobWitness) -> None:
    """Any sorted ranges come back as they were."""
    assert parse_hob_witness(serialise_hob_witness(witness)) == witness


@given(st.binary(max_size=40))
def test_a_witness_has_one_spelling(raw: bytes) -> None:
    """Bytes are refused, or are exactly what their witness is written as."""
    try:
        witness = parse_hob_witness(raw)
    except MeasurementMalformedError:
        return
    assert serialise_hob_witness(witness) == raw


@given(documents)
def test_a_document_that_was_written_is_read_again(document: MeasurementDocument) -> None:
    """Any digests and ranges come back as they were."""
    assert parse_measurement_document(serialise_measurement_document(document)) == document


@given(documents, st.data())
def test_a_changed_document_is_another_one(document: MeasurementDocument, data: st.DataObject) -> None:
    """One changed byte is refused or read as something else."""
    raw = bytearray(serialise_measurement_document(document))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))

    try:
        changed = parse_measurement_document(bytes(raw))
    except MeasurementMalformedError:
        return
    assert changed != document


@given(configs)
def test_a_vm_config_that_was_written_is_read_again(config: VmConfig) -> None:
    """Any shape comes back as it was, also from inside a sys-config."""
    written = serialise_vm_config(config)

    assert parse_vm_config(written) == config
    assert parse_vm_config(json.dumps({"kms_urls": [], "vm_config": written})) == config


@given(name=text.filter(len), provider=st.sampled_from(["none", "local", "kms"]), constant=st.booleans())
def test_an_app_compose_that_was_written_is_read_again(name: str, provider: str, constant: bool) -> None:
    """Name and choices come back, and the docker-compose file is carried verbatim."""
    docker_compose = "services: {w: {image: é}}\r\n# end"

    raw = app_compose_from_docker_compose(
        docker_compose.encode(), name=name, key_provider=provider, no_instance_id=constant
    )

    app = parse_app_compose(raw)
    assert (app.name, app.key_provider, app.no_instance_id) == (name, provider, constant)
    assert app.docker_compose_file == docker_compose


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
event_like = st.lists(
    st.fixed_dictionaries(
        dict.fromkeys(("imr", "event_type", "digest", "event", "event_payload"), json_like),
        optional={"version": json_like, "preimage": json_like},
    ),
    max_size=3,
)
compose_like = st.fixed_dictionaries(
    {"manifest_version": json_like, "name": json_like, "runner": st.just("docker-compose") | json_like},
    optional=dict.fromkeys(("docker_compose_file", "requirements", "init_script", "features"), json_like),
)
config_like = st.fixed_dictionaries(
    {"os_image_hash": st.just("ab" * 32) | json_like, "cpu_count": json_like, "memory_size": json_like},
    optional=dict.fromkeys(("vm_config", "tdx_measurement", "qemu_version", "spec_version"), json_like),
)


@given((event_like | compose_like | config_like | json_like).map(json.dumps))
def test_json_of_any_form_is_read_or_refused(written: str) -> None:
    """No JSON makes a parser fail other than by its own error."""
    for parse, error in (
        (parse_event_log, EventLogMalformedError),
        (lambda raw: parse_app_compose(raw.encode()), ComposeMalformedError),
        (parse_vm_config, MeasurementMalformedError),
    ):
        with suppress(error):
            parse(written)


@given(st.binary(max_size=80) | st.text(alphabet="{}[]:,&*<!|>-?#'\"% \n\tab0", max_size=60).map(str.encode))
def test_bytes_of_any_form_are_read_or_refused(raw: bytes) -> None:
    """No bytes make a parser fail other than by its own error."""
    for parse, error in (
        (parse_docker_compose, ComposeMalformedError),
        (parse_app_compose, ComposeMalformedError),
        (parse_event_log, EventLogMalformedError),
        (parse_checksum_file, MeasurementMalformedError),
        (parse_measurement_document, MeasurementMalformedError),
    ):
        with suppress(error):
            parse(raw)


@given(st.binary(max_size=40))
def test_no_other_base64_is_read(raw: bytes) -> None:
    """A character that base64 does not have is refused, wherever it stands."""
    encoded = b64encode(raw).decode() + "!"
    written = {"os_image_hash": "ab" * 32, "cpu_count": 1, "memory_size": 1}

    with pytest.raises(MeasurementMalformedError, match="checksum_file: want base64"):
        parse_vm_config(json.dumps({**written, "tdx_measurement": {"checksum_file": encoded, "measurement": ""}}))
