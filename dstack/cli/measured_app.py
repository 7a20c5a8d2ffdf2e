"""The app's part of `dstack measure`: RTMR3, MRCONFIGID and the identities that follow from an app-compose.json."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from dstack.attestation.quote import parse_quote
from dstack.cli.app_facts import AppFacts, boot_inputs
from dstack.cli.files import read_input
from dstack.cli.subjects import Subject
from dstack.errors import MeasurementInputMissingError, MeasurementMalformedError
from dstack.measurement.compose import MAX_APP_COMPOSE, AppCompose, parse_app_compose
from dstack.measurement.event_log import RuntimeEvent, runtime_events
from dstack.measurement.identities import device_id
from dstack.measurement.mr_config_id import (
    MAX_DOCUMENT,
    NO_MR_CONFIG_ID,
    mr_config_id_v1,
    mr_config_id_v2,
    mr_config_id_v3,
    parse_config_document,
)
from dstack.measurement.result import app_events
from dstack.measurement.rtmr3 import (
    BOOT_MR_DONE,
    OUR_SEQUENCE,
    BootInputs,
    boot_events,
    predict_rtmr3,
    sequence_of_release,
    split_at_boot_mr_done,
)
from dstack.values import InstanceId, OsImageHash, Register

_FORMS = ("none", "v1", "v2")
_NO_COMPOSE = "it needs the app: --compose"


@dataclass(slots=True)
class MeasuredApp:
    """What an app adds to a measurement.

    Attributes:
        registers: `rtmr3` and `mr_config_id`, where they could be computed.
        missing: Why not, by name.
        events: Of RTMR3.
        identities: Hashes and ids, by name.
        key_provider: Payload of that event; None if there is none.
        rtmr3_at_boot: RTMR3 when the keys are asked for; None if the sequence has no such moment.
        sequence: Which order of events was taken.
        claims: What only the quote says, and nobody verified here.
    """

    registers: dict[str, Register] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    events: tuple[RuntimeEvent, ...] = ()
    identities: dict[str, bytes] = field(default_factory=dict)
    key_provider: bytes | None = None
    rtmr3_at_boot: Register | None = None
    sequence: str = OUR_SEQUENCE
    claims: dict[str, str] = field(default_factory=dict)


def measure_app(
    compose: str | None,
    facts: AppFacts,
    *,
    sequence: str | None,
    subject: Subject | None,
    mr_config_id: str | None,
    os_image_hash: OsImageHash | None,
    version: str | None,
) -> MeasuredApp:
    """Compute what follows from an app.

    Args:
        compose: File of the app-compose.json; None leaves RTMR3 uncomputed.
        facts: What was typed.
        sequence: Order of events; None takes that of *version*.
        subject: What is to be compared: its log says what the app added, its quote which MRCONFIGID the host uses.
        mr_config_id: `none`, `v1`, `v2`, or the file of a version 3 document.
        os_image_hash: Measured if nothing else was typed.
        version: Of the image.

    Raises:
        InputError: A file or an option is malformed.
    """
    app = MeasuredApp(sequence=sequence or (version and sequence_of_release(version)) or OUR_SEQUENCE)
    if subject is not None and subject.quote is not None:
        app.claims = _claims(subject.quote)
    parsed = None if compose is None else parse_app_compose(read_input(compose, limit=MAX_APP_COMPOSE))
    if parsed is not None:
        facts = _with_instance_id(app, parsed, facts, subject)
    inputs = None if parsed is None else _inputs(app, parsed, facts, os_image_hash)
    if parsed is None:
        app.missing["rtmr3"] = _NO_COMPOSE
    elif inputs is not None:
        app.identities |= {"app_id": inputs.app_id, "instance_id": bytes(inputs.instance_id or b"")}
        _add_rtmr3(app, inputs, parsed.event_log_version, subject)
    if parsed is not None:
        app.identities["compose_hash"] = parsed.compose_hash
    _add_mr_config_id(app, mr_config_id or _form_of(subject), inputs)
    return app


def _with_instance_id(app: MeasuredApp, parsed: AppCompose, facts: AppFacts, subject: Subject | None) -> AppFacts:
    """Take the instance id from the log that is compared, if none was typed.

    It is random, so that nobody can expect one; that RTMR3 is computed from it and equal proves that it was measured.
    """
    events = runtime_events(subject.events or ()) if subject is not None else ()
    logged = next((event.payload for event in events if event.name == "instance-id"), b"")
    if facts.instance_id is not None or parsed.no_instance_id or len(logged) != InstanceId.SIZE:
        return facts
    app.claims["instance_id_from_log"] = logged.hex()
    return replace(facts, instance_id=logged.hex())


def _inputs(
    app: MeasuredApp, parsed: AppCompose, facts: AppFacts, os_image_hash: OsImageHash | None
) -> BootInputs | None:
    try:
        return boot_inputs(parsed, facts, os_image_hash=os_image_hash)
    except MeasurementInputMissingError as exc:
        app.missing["rtmr3"] = str(exc)
        return None


def _add_rtmr3(app: MeasuredApp, inputs: BootInputs, version: int, subject: Subject | None) -> None:
    try:
        events = boot_events(app.sequence, inputs, version=version)
    except MeasurementInputMissingError as exc:
        app.missing["rtmr3"] = str(exc)
        return
    added = () if subject is None else app_events(runtime_events(subject.events or ()))
    app.events = (*events, *added)
    app.registers["rtmr3"] = predict_rtmr3(app.events)
    app.key_provider = next((event.payload for event in events if event.name == "key-provider"), None)
    if any(event.name == BOOT_MR_DONE for event in events):
        app.rtmr3_at_boot = predict_rtmr3(split_at_boot_mr_done(events)[0])


def _form_of(subject: Subject | None) -> str | None:
    """Which form the quote's own MRCONFIGID has; its content is computed and compared all the same."""
    if subject is None or subject.registers is None:
        return None
    first = subject.registers["mr_config_id"][0]
    return {0: "none", 1: "v1", 2: "v2"}.get(first, f"v{first}")


def _add_mr_config_id(app: MeasuredApp, form: str | None, inputs: BootInputs | None) -> None:
    if form is None:
        app.missing["mr_config_id"] = "it needs to know how the host binds machines: --mr-config-id"
    elif form == "none":
        app.registers["mr_config_id"] = NO_MR_CONFIG_ID
    elif form in _FORMS:
        if inputs is None:
            app.missing["mr_config_id"] = app.missing.get("rtmr3", _NO_COMPOSE)
        elif form == "v1":
            app.registers["mr_config_id"] = mr_config_id_v1(inputs.compose_hash)
        else:
            app.registers["mr_config_id"] = mr_config_id_v2(
                inputs.compose_hash, inputs.app_id, inputs.key_provider, inputs.key_provider_id
            )
    elif form == "v3":
        app.missing["mr_config_id"] = "it needs the document that the host digested: --mr-config-id FILE"
    else:
        _add_v3(app, form, inputs)


def _add_v3(app: MeasuredApp, path: str, inputs: BootInputs | None) -> None:
    raw = read_input(path, limit=MAX_DOCUMENT)
    document = parse_config_document(raw)
    if inputs is not None and document.compose_hash != inputs.compose_hash:
        raise MeasurementMalformedError(f"{path}: its compose hash is not that of the app")
    app.registers["mr_config_id"] = mr_config_id_v3(raw)


def _claims(quote: bytes) -> dict[str, str]:
    # Parsing certificates needs a library that nothing else here does.
    from dstack.attestation.pck import claimed_platform

    return {"claimed_device_id": device_id(claimed_platform(parse_quote(quote)).ppid).hex()}
