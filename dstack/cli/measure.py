"""`dstack measure`: what a machine must show, from its image, its shape and its app; compared with a quote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from dstack.cli.acpi_option import HELP, acpi_from
from dstack.cli.app_facts import AppFacts, app_options
from dstack.cli.files import read_input
from dstack.cli.image_folder import ImageFolder, read_image
from dstack.cli.measured_app import MeasuredApp, measure_app
from dstack.cli.subjects import Subject, parse_subject, read_subject
from dstack.cli.vm_shape import shape_options, take_shape
from dstack.errors import InputError, MeasurementMalformedError
from dstack.measurement.acpi import AcpiDigests
from dstack.measurement.document import (
    MeasurementDocument,
    accepted_document,
    document_digests,
    make_document,
    parse_measurement_document,
    serialise_measurement_document,
)
from dstack.measurement.identities import mr_aggregated, mr_key_provider, mr_system
from dstack.measurement.machine import BootDigests, image_digests, predict_boot
from dstack.measurement.prediction import runtime
from dstack.measurement.result import REGISTERS, Comparison, Measurement, Verdict, compare, overall
from dstack.measurement.result_json import MAX_RESULT, measurement_facts
from dstack.measurement.rtmr3 import SEQUENCES
from dstack.measurement.vm_config import VmConfig, parse_vm_config, serialise_vm_config
from dstack.values import OsImageHash, Register

_ZERO = Register(bytes(Register.SIZE))
_EXIT = {Verdict.MATCHED: 0, Verdict.MISMATCHED: 1, Verdict.NOT_COMPUTABLE: 3}
_EXAMPLES = """\b
Examples:
  dstack measure dstack-0.5.7/ --memory 4G --cpus 2 --qemu-version 9.1.0 --acpi own-qemu
  dstack measure dstack-0.5.7/ --acpi from-log:get-quote.json --compare get-quote.json
  dstack measure dstack-0.5.7/ --vm-config vm.json --acpi captured:tables/ --compose app-compose.json \\
      --instance-id 1691... --key-provider-id 3059... --compare get-quote.json --json
  dstack measure dstack-0.5.7/ --memory 2G --write-document measurement.tdx.cbor

A comparison says matched, mismatched or not computable; only the first exits 0. Digests from the machine's own log say
nothing of its ACPI tables' content: RTMR0 is then not computable, unless --accept-unverified-acpi says otherwise."""


@dataclass(frozen=True, slots=True)
class _Image:
    """What was named to be measured: a folder, or a document alone."""

    name: str
    folder: ImageFolder | None = None
    document: MeasurementDocument | None = None
    config: str | None = None

    @property
    def os_image_hash(self) -> OsImageHash | None:
        """Known of a folder."""
        return None if self.folder is None else self.folder.os_image_hash

    @property
    def version(self) -> str | None:
        """The release, as a folder's metadata.json says it."""
        return None if self.folder is None else self.folder.metadata.version

    def path(self, part: str) -> Path | None:
        """Where a part of a folder is."""
        return None if self.folder is None else self.folder.folder / getattr(self.folder.metadata, part)


@click.command(name="measure", epilog=_EXAMPLES)
@click.argument("image")
@shape_options
@click.option("--acpi", metavar="SOURCE", help=HELP)
@click.option("--compose", metavar="FILE", help="The app-compose.json, for RTMR3.")
@click.option("--sequence", type=click.Choice(list(SEQUENCES)), help="Default: by the image's version.")
@click.option("--mr-config-id", metavar="FORM", help="none, v1, v2 or the file of a v3 document. Default: the quote's.")
@app_options
@click.option("--compare", "compare_with", metavar="FILE", help="A quote, or a GetQuote answer.")
@click.option("--only", multiple=True, type=click.Choice(REGISTERS), help="Compare only this register. Repeatable.")
@click.option("--accept-unverified-acpi", is_flag=True, help="Take RTMR0 for matched with digests from the log.")
@click.option("--write-document", metavar="FILE", help="Write the image's measurement document there.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    image: str,
    acpi: str | None,
    compose: str | None,
    sequence: str | None,
    mr_config_id: str | None,
    compare_with: str | None,
    only: tuple[str, ...],
    accept_unverified_acpi: bool,
    write_document: str | None,
    as_json: bool,
    **typed: Any,
) -> None:
    """Compute MRTD and RTMR0 to RTMR3 of a machine that runs IMAGE.

    IMAGE is the folder of an OS image, its measurement.tdx.cbor, or a VM config that carries that document. A quote's
    signature is not verified here: that is `dstack verify`.
    """
    facts = AppFacts.take(typed)
    subject = None if compare_with is None else _quoted_subject(compare_with)
    source = _read(image)
    config = take_shape(
        typed, claimed=source.config or (None if subject is None else subject.vm_config), image=source.os_image_hash
    )
    digests = _digests(source, config)
    tables = (
        None
        if acpi is None
        else acpi_from(acpi, config, firmware=source.path("firmware"), kernel=source.path("kernel"))
    )
    app = measure_app(
        compose, facts, sequence=sequence, subject=subject, mr_config_id=mr_config_id,
        os_image_hash=_image_hash(source, config), version=source.version,
    )  # fmt: skip
    measurement = _measurement(digests, config, tables, app, source, acpi)
    if write_document is not None:
        _write_document(source, write_document)
    comparisons = () if subject is None or subject.registers is None else compare(measurement, subject.registers)
    asked = tuple(each for each in comparisons if not only or each.name in only)
    verdict = _verdict(asked, accept_unverified_acpi=accept_unverified_acpi) if comparisons else None
    _show(measurement, config, asked, verdict, app, as_json=as_json)
    if verdict is not None:
        context.exit(_EXIT[verdict])
    if any(name in measurement.missing for name in _asked_for(acpi, compose, only)):
        context.exit(_EXIT[Verdict.NOT_COMPUTABLE])


def _read(image: str) -> _Image:
    path = Path(image)
    if path.is_dir():
        return _Image(image, folder=read_image(path))
    raw = read_input(image, limit=MAX_RESULT)
    if not raw.lstrip().startswith(b"{"):
        return _Image(image, document=parse_measurement_document(raw))
    text = parse_subject(raw, image).vm_config if b'"event_log"' in raw or b'"quote"' in raw else raw.decode()
    if text is None:
        raise InputError(f"{image}: it holds no VM config, and so no measurement document")
    return _Image(image, document=accepted_document(parse_vm_config(text)), config=text)


def _quoted_subject(path: str) -> Subject:
    subject = read_subject(path)
    if subject.quote is None:
        raise InputError(f"{path}: want a quote to compare with, got none")
    return subject


def _digests(source: _Image, config: VmConfig) -> BootDigests:
    if source.document is not None:
        return document_digests(source.document, config)
    assert source.folder is not None
    # Both hash tens of megabytes, and hashing leaves the interpreter free: each gets a core.
    with ThreadPoolExecutor(1) as pool:
        checked = source.folder.check_beside(pool)
        try:
            digests = image_digests(source.folder.files, config)
        finally:
            # A wrong file is the better reason than whatever measuring it came to.
            checked.result()
    return digests


def _image_hash(source: _Image, config: VmConfig) -> OsImageHash | None:
    """The hash of the image that was measured; a VM config of another image is refused."""
    claimed = config.os_image_hash if any(config.os_image_hash) else None
    known = source.os_image_hash
    if known is not None and claimed not in (None, known):
        raise MeasurementMalformedError(
            f"os_image_hash: the VM config says {claimed.hex()}, this image is {known.hex()}"
        )
    return known or claimed


def _measurement(
    digests: BootDigests,
    config: VmConfig,
    tables: AcpiDigests | None,
    app: MeasuredApp,
    source: _Image,
    acpi: str | None,
) -> Measurement:
    boot = predict_boot(digests, config, tables)
    registers = {**boot.registers, **app.registers, "mr_owner": _ZERO, "mr_owner_config": _ZERO}
    missing = dict(app.missing)
    if tables is None:
        missing["rtmr0"] = (
            "it needs ACPI digests: --acpi" if acpi is None else f"{acpi[:200]} has no tables for this shape"
        )
    return Measurement(
        registers={name: registers[name] for name in REGISTERS if name in registers},
        missing=missing,
        events=(*boot.events, *(runtime(event) for event in app.events)),
        identities=_identities(registers, app, _image_hash(source, config)),
        acpi=tables,
        image_origin=digests.origin,
    )


def _identities(
    registers: dict[str, Register], app: MeasuredApp, os_image_hash: OsImageHash | None
) -> dict[str, bytes]:
    identities: dict[str, bytes] = {} if os_image_hash is None else {"os_image_hash": os_image_hash}
    identities |= app.identities
    if "rtmr0" not in registers:
        return identities
    system = registers["mrtd"], registers["rtmr0"], registers["rtmr1"], registers["rtmr2"]
    identities["mr_system_at_boot"] = mr_system(*system, mr_key_provider(None))
    if "rtmr3" not in registers:
        return identities
    identities["mr_system"] = mr_system(*system, mr_key_provider(app.key_provider))
    config_id = registers.get("mr_config_id")
    if config_id is None:
        return identities
    others = {"mr_config_id": config_id, "mr_owner": _ZERO, "mr_owner_config": _ZERO}
    identities["mr_aggregated"] = mr_aggregated(*system, registers["rtmr3"], **others)
    if app.rtmr3_at_boot is not None:
        identities["mr_aggregated_at_boot"] = mr_aggregated(*system, app.rtmr3_at_boot, **others)
    return identities


def _asked_for(acpi: str | None, compose: str | None, only: tuple[str, ...]) -> tuple[str, ...]:
    """The registers that whoever typed this wants: without them there is no success."""
    return only or tuple(name for name, given in (("rtmr0", acpi), ("rtmr3", compose)) if given is not None)


def _verdict(comparisons: Sequence[Comparison], *, accept_unverified_acpi: bool) -> Verdict:
    if accept_unverified_acpi:
        comparisons = [each for each in comparisons if each.wanted != each.got]
        return overall(comparisons) if comparisons else Verdict.MATCHED
    return overall(comparisons)


def _write_document(source: _Image, path: str) -> None:
    if source.folder is None:
        raise InputError("--write-document: it is made from an image's folder")
    try:
        Path(path).write_bytes(serialise_measurement_document(make_document(source.folder.files)))
    except OSError as exc:
        raise InputError(f"{path}: cannot be written: {exc.strerror or exc}") from exc


def _show(
    measurement: Measurement,
    config: VmConfig,
    comparisons: Sequence[Comparison],
    verdict: Verdict | None,
    app: MeasuredApp,
    *,
    as_json: bool,
) -> None:
    from dstack.cli.measured_text import comparison_facts, comparison_text, measurement_text

    if as_json:
        answer = {**measurement_facts(measurement), "vm_config": json.loads(serialise_vm_config(config))}
        answer |= {"sequence": app.sequence} | app.claims
        if verdict is not None:
            answer |= comparison_facts(comparisons, verdict)
        click.echo(json.dumps(answer))
        return
    for line in measurement_text(measurement, app.sequence, app.claims):
        click.echo(line)
    if verdict is not None:
        for line in comparison_text(comparisons, verdict):
            click.echo(line)
