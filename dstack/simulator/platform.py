"""NOT PRODUCTION. A TD made of software: registers in memory, quotes under the simulator's root."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from dstack.errors import MeasurementMalformedError
from dstack.measurement.event_log import Event, RuntimeEvent, logged, replay_event_log
from dstack.measurement.mr_config_id import mr_config_id_v1
from dstack.measurement.vm_config import parse_vm_config
from dstack.simulator.os_image import SimulatedImage
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.quoting import TdRegisters, make_quote
from dstack.values import ComposeHash, ReportData


@dataclass(frozen=True, slots=True)
class Defects:
    """What is wrong with a simulated machine, for tests of those who must refuse it.

    Attributes:
        tcb_status: What its platform's own collateral says of it, in Intel's spelling.
        debug: It runs with the DEBUG attribute set.
    """

    tcb_status: str = "UpToDate"
    debug: bool = False


class SimulatedPlatform:
    """Implements `dstack.guest.platform.Platform`; a machine just powered on, its firmware and kernel measured.

    Args:
        pki: The platform's maker.
        image: What boots.
        vm_config: The shape of the VM, as its host states it: JSON.
        compose_hash: What its host sets in MRCONFIGID.
        defects: What is wrong with it.

    Raises:
        MeasurementMalformedError: *vm_config* names another image, or a shape that the image does not describe.
    """

    def __init__(
        self,
        pki: SimulatedPki,
        image: SimulatedImage,
        vm_config: str,
        compose_hash: ComposeHash,
        defects: Defects | None = None,
    ) -> None:
        shape = parse_vm_config(vm_config)
        if shape.os_image_hash != image.os_image_hash:
            raise MeasurementMalformedError(
                f"vm_config: want the image {image.os_image_hash.hex()}, got {shape.os_image_hash.hex()}"
            )
        self._pki = pki
        self._mr_td = image.mr_td(shape)
        self._mr_config_id = mr_config_id_v1(compose_hash)
        self._config = vm_config
        self._defects = defects or Defects()
        self._events = image.boot_log(shape)
        self._lock = threading.Lock()

    @property
    def config(self) -> str:
        """The VM config as the host stated it."""
        return self._config

    def quote(self, report_data: ReportData) -> bytes:
        """A version 4 quote over the registers as they are now."""
        rtmr = replay_event_log(self.event_log())
        registers = TdRegisters(
            mr_td=self._mr_td,
            rtmr0=rtmr[0],
            rtmr1=rtmr[1],
            rtmr2=rtmr[2],
            rtmr3=rtmr[3],
            mr_config_id=self._mr_config_id,
        )
        return make_quote(
            self._pki,
            registers=registers,
            report_data=report_data,
            tcb_status=self._defects.tcb_status,
            debug=self._defects.debug,
        )

    def extend(self, event: RuntimeEvent) -> None:
        """Extend RTMR3."""
        with self._lock:
            self._events = (*self._events, logged(event))

    def event_log(self) -> tuple[Event, ...]:
        """Everything extended since power-on."""
        with self._lock:
            return self._events
