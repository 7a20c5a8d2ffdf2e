"""Attack: the allowed app on another kernel, command line or initrd. The original compared neither RTMR1 nor RTMR2."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dstack.attestation.evidence import Evidence
from dstack.errors import AppraisalError
from dstack.measurement.event_log import replay_event_log
from dstack.simulator.os_image import make_image
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.values import Register
from replicator.documents import parse_request
from tests.handover_attacks import nothing_left, quoted_by, request_quoted_by
from tests.worlds import Site, make_handover


@pytest.mark.parametrize("name", ["mr_td", "rtmr0", "rtmr1", "rtmr2"])
def test_each_register_is_compared(tmp_path: Path, site: Site, name: str) -> None:
    """A genuine quote in which one register is not what the OS image measures is refused, and the error names it."""
    world = make_handover(tmp_path, site)
    machine = world.new_machine
    request = parse_request(world.request()).request
    rtmr = replay_event_log(machine.platform.event_log())
    config = site.image.vm_config()
    registers = TdRegisters(site.image.mr_td(config), rtmr[0], rtmr[1], rtmr[2], rtmr[3])
    other = replace(registers, **{name: Register(b"\x66" * 48)})
    quote = make_quote(site.pki, registers=other, report_data=request.report_data())

    def with_other_registers(evidence: Evidence) -> Evidence:
        return replace(evidence, quote=quote)

    with pytest.raises(AppraisalError, match=f"{'MRTD' if name == 'mr_td' else name.upper()}: want"):
        world.old.onboard(quoted_by(machine, request, with_other_registers))

    assert nothing_left(world)


def test_another_image_under_the_allowed_ones_name_is_noticed(tmp_path: Path, site: Site) -> None:
    """A machine on another image that shows the allowed image's configuration is refused by its registers."""
    world = make_handover(tmp_path, site)
    foreign = Site(site.pki, make_image("another image"))
    machine = foreign.machine(tmp_path / "foreign", world.new_machine.booted.app_compose.raw)
    allowed = world.new_machine.platform.config

    with pytest.raises(AppraisalError, match=r"(MRTD|RTMR[012]): want"):
        world.old.onboard(request_quoted_by(world, machine, lambda evidence: replace(evidence, config=allowed)))
