"""`dstack measure`: what a machine must show, from its image, its shape and its app; compared with a quote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from dstack.cli.acpi_option import HELP, acpi_from, keep
from dstack.cli.app_facts import AppFacts, app_options
from dstack.cli.measured_app import MeasuredApp, measure_app
from dstack.cli.measured_image import MeasuredImage, read_measured
from dstack.cli.subjects import Subject, read_subject
from dstack.cli.vm_shape import shape_options, take_shape
from dstack.errors import InputError
from dstack.measurement.acpi import AcpiDigests
from dstack.measurement.identities import mr_aggregated, mr_key_provider, mr_system
from dstack.measurement.machine import BootDigests, predict_boot
from dstack.measurement.prediction import runtime
from dstack.measurement.result import REGISTERS, Comparison, Measurement, Verdict, compare, overall
from dstack.measurement.result_json import measurement_facts
from dstack.measurement.rtmr3 import SEQUENCES
from dstack.measurement.vm_config import VmConfig, serialise_vm_config
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


@click.command(name="measure", epilog=_EXAMPLES)
@click.argument("image")
@shape_options
@click.option("--acpi", metavar="SOURCE", help=HELP)
@click.option("--keep-acpi", metavar="FOLDER", help="Keep the tables there, for --acpi captured:FOLDER.")
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
    keep_acpi: str | None,
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
    source = read_measured(image)
    config = take_shape(
        typed, claimed=source.config or (None if subject is None else subject.vm_config), image=source.os_image_hash
    )
    digests = source.digests(config)
    tables = (
        None
        if acpi is None
        else acpi_from(acpi, config, firmware=source.path("firmware"), kernel=source.path("kernel"))
    )
    app = measure_app(
        compose, facts, sequence=sequence, subject=subject, mr_config_id=mr_config_id,
        os_image_hash=source.hash(config), version=source.version,
    )  # fmt: skip
    measurement = _measurement(digests, config, tables, app, source, acpi)
    if keep_acpi is not None:
        keep(tables, config, keep_acpi)
    if write_document is not None:
        source.save_document(write_document)
    comparisons: tuple[Comparison, ...] = ()
    if subject is not None and subject.registers is not None:
        compared = compare(measurement, subject.registers)
        comparisons = tuple(source.explained(each, config) for each in compared)
    asked = tuple(each for each in comparisons if not only or each.name in only)
    verdict = _verdict(asked, accept_unverified_acpi=accept_unverified_acpi) if comparisons else None
    _show(measurement, config, asked, verdict, app, as_json=as_json)
    if verdict is not None:
        context.exit(_EXIT[verdict])
    if any(name in measurement.missing for name in _asked_for(acpi, compose, only)):
        context.exit(_EXIT[Verdict.NOT_COMPUTABLE])


def _quoted_subject(path: str) -> Subject:
    subject = read_subject(path)
    if subject.quote is None:
        raise InputError(f"{path}: want a quote to compare with, got none")
    return subject


def _measurement(
    digests: BootDigests,
    config: VmConfig,
    tables: AcpiDigests | None,
    app: MeasuredApp,
    source: MeasuredImage,
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
        identities=_identities(registers, app, source.hash(config)),
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
