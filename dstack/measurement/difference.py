"""Where two measurements part: the first differing event of each register, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from dstack.measurement.acpi import ACPI_EVENT_TYPE
from dstack.measurement.labels import Line
from dstack.measurement.prediction import Input
from dstack.measurement.registers import replay
from dstack.measurement.result import MRTD_INPUTS, REGISTERS
from dstack.values import Register

# Bytes of what was measured that are shown.
_SHOWN = 160


class Outcome(StrEnum):
    """What comparing one register of two sides came to."""

    EQUAL = "equal"
    DIFFERENT = "different"
    UNKNOWN = "not comparable"


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two: a quote, a log, a prediction, or several of them together.

    Attributes:
        name: What it is called, such as its file.
        registers: As a quote or a prediction states them, by the names in `REGISTERS`; those of a log alone follow.
        lines: Its events; None if it has no log.
        acpi_from_log: Its ACPI digests were taken from a machine's own log: that RTMR0 is then equal proves nothing.
    """

    name: str
    registers: Mapping[str, Register]
    lines: tuple[Line, ...] | None
    acpi_from_log: bool = False

    def events(self, imr: int) -> tuple[Line, ...] | None:
        """Its events of one register; None if it has no log, or one stripped of that register's events."""
        found = tuple(line for line in self.lines or () if line.event.imr == imr)
        if all(line.event.event_type == ACPI_EVENT_TYPE for line in found):
            return None
        return found

    def register(self, name: str) -> Register | None:
        """One register: stated, or else folded from the log."""
        if name in self.registers:
            return self.registers[name]
        lines = self.events(int(name[4:])) if name.startswith("rtmr") else None
        return None if lines is None else replay(line.event.extended for line in lines)

    def contradicts_itself(self, name: str) -> bool:
        """Whether its log does not fold into the register it states."""
        lines = self.events(int(name[4:])) if name.startswith("rtmr") else None
        if lines is None or name not in self.registers:
            return False
        return replay(line.event.extended for line in lines) != self.registers[name]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is to be said of one register.

    Attributes:
        register: Its name.
        outcome: Equal, different, or not comparable.
        what: In words: which event, or why nothing can be said.
        left: What the left side has there.
        right: What the right side has there.
        depends_on: The inputs that decide it.
        look_at: What to look at next.
    """

    register: str
    outcome: Outcome
    what: str
    left: str = ""
    right: str = ""
    depends_on: tuple[Input, ...] = ()
    look_at: str = ""


def explain(left: Side, right: Side) -> tuple[Finding, ...]:
    """Say of every register that either side has where the two part."""
    names = [name for name in REGISTERS if left.register(name) is not None or right.register(name) is not None]
    return tuple(finding for name in names for finding in _findings(name, left, right))


def _findings(name: str, left: Side, right: Side) -> Iterator[Finding]:
    for side in (left, right):
        if side.contradicts_itself(name):
            what = f"the log of {side.name} does not fold into the {name} it comes with: it is the log of another boot"
            yield Finding(name, Outcome.DIFFERENT, what, look_at="get log and quote in one GetQuote call")
    yield _compared(name, left, right)


def _compared(name: str, left: Side, right: Side) -> Finding:
    ours, theirs = left.register(name), right.register(name)
    if ours is None or theirs is None:
        return Finding(name, Outcome.UNKNOWN, f"{(left if ours is None else right).name} does not say it")
    borrower = next((side for side in (left, right) if side.acpi_from_log), None)
    if ours == theirs and name == "rtmr0" and borrower is not None:
        what = f"they are equal, but {borrower.name} took its ACPI digests from a machine's own log"
        return Finding(name, Outcome.UNKNOWN, what, ours.hex(), theirs.hex(), look_at="measure with another --acpi")
    if ours == theirs:
        return _logs_of_equal(name, left, right) or Finding(name, Outcome.EQUAL, "equal", ours.hex(), theirs.hex())
    if not name.startswith("rtmr"):
        inputs = _ALONE_INPUTS.get(name, ())
        return Finding(name, Outcome.DIFFERENT, _ALONE[name], ours.hex(), theirs.hex(), inputs, _look_at(inputs))
    lines = left.events(int(name[4:])), right.events(int(name[4:]))
    if lines[0] is None or lines[1] is None:
        missing = left if lines[0] is None else right
        what = f"the registers differ, and {missing.name} has no events of it to compare"
        return Finding(name, Outcome.DIFFERENT, what, ours.hex(), theirs.hex(), look_at="get the event log as well")
    return _first_difference(name, lines[0], lines[1]) or Finding(
        name, Outcome.DIFFERENT, "the registers differ, but the events do not", ours.hex(), theirs.hex()
    )


def _logs_of_equal(name: str, left: Side, right: Side) -> Finding | None:
    """Where two logs part although the registers they come with are equal: one of them was changed."""
    lines = [side.events(int(name[4:])) if name.startswith("rtmr") else None for side in (left, right)]
    found = None if lines[0] is None or lines[1] is None else _first_difference(name, lines[0], lines[1])
    return found and replace(found, what=f"the registers are equal, and the logs part at {found.what}")


def _first_difference(name: str, left: Sequence[Line], right: Sequence[Line]) -> Finding | None:
    for place, (ours, theirs) in enumerate(zip(left, right, strict=False), 1):
        if ours.event.extended == theirs.event.extended:
            continue
        inputs = ours.depends_on or theirs.depends_on
        what = f"event {place}, {ours.label}"
        if ours.label != theirs.label:
            what = f"event {place}: {ours.label} against {theirs.label}"
        at = _first_byte(_content(ours), _content(theirs))
        if at is not None:
            what += f"; what was measured parts at byte {at}"
        return Finding(name, Outcome.DIFFERENT, what, _shown(ours, at), _shown(theirs, at), inputs, _look_at(inputs))
    place = min(len(left), len(right))
    if len(left) == len(right):
        return None
    more = left[place] if len(left) > len(right) else right[place]
    side = "left" if len(left) > len(right) else "right"
    what = f"event {place + 1}, {more.label}: only the {side} side has it"
    shown = (_shown(more), "none") if side == "left" else ("none", _shown(more))
    return Finding(name, Outcome.DIFFERENT, what, *shown, more.depends_on, _look_at(more.depends_on))


def _content(line: Line) -> bytes:
    """What was measured, as far as it is known; of a runtime event that is its payload."""
    return line.event.payload if line.event.runtime is not None else line.preimage or b""


def _first_byte(left: bytes, right: bytes) -> int | None:
    if not left or not right or left == right:
        return None
    differing = (at for at, (one, other) in enumerate(zip(left, right, strict=False)) if one != other)
    return next(differing, min(len(left), len(right)))


def _shown(line: Line, at: int | None = None) -> str:
    """A digest, and what was measured where that is known: whole if short, else around byte *at*."""
    digest, content = line.event.extended.hex(), _content(line)
    if not content:
        return digest
    if len(content) > _SHOWN:
        start = max((at or 0) - _SHOWN // 4, 0) & ~1
        return f"{digest} of ...{_text(content[start : start + _SHOWN])}... ({len(content)} bytes)"
    return f"{digest} of {_text(content)}"


def _text(content: bytes) -> str:
    """Text in quotes, if it is text in ASCII or UTF-16; else hexadecimal."""
    for encoding in ("ascii", "utf-16-le"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        # A measured command line ends in a terminator.
        text = text.removesuffix("\0") if encoding != "ascii" else text
        if text and text.isascii() and text.isprintable():
            return repr(text)
    return content.hex()


def _look_at(inputs: Sequence[Input]) -> str:
    return "; ".join(dict.fromkeys(_LOOK_AT[each] for each in inputs))


_ALONE = {
    "mrtd": "the firmware, or the order in which QEMU loaded it",
    "mr_config_id": "what the host bound the machine to before it started",
    "mr_owner": "a register that dstack leaves zero",
    "mr_owner_config": "a register that dstack leaves zero",
}
_ALONE_INPUTS: Mapping[str, tuple[Input, ...]] = {
    "mrtd": MRTD_INPUTS,
    "mr_config_id": (Input.COMPOSE, Input.APP_ID, Input.KEY_PROVIDER),
}
_LOOK_AT: Mapping[Input, str] = {
    Input.FIRMWARE: "the SHA-256 of the firmware file in the image's sha256sum.txt",
    Input.KERNEL: "the SHA-256 of the kernel in the image's sha256sum.txt",
    Input.INITRD: "the SHA-256 and the size of the initrd",
    Input.CMDLINE: "`cmdline` in the image's metadata.json",
    Input.MEMORY: "`memory_size` of the VM config",
    Input.DEVICES: "CPUs, network cards, volumes, GPUs and `host_share_mode` of the VM config",
    Input.QEMU: "`qemu_version`, `pic` and `qemu_single_pass_add_pages` of the VM config",
    Input.COMPOSE: "the bytes of app-compose.json (dstack compose-hash)",
    Input.APP_ID: "the app's address, or the first 20 bytes of its compose hash",
    Input.INSTANCE: "the instance id: it is random unless the app says no_instance_id",
    Input.KEY_PROVIDER: "the key provider's id: the public key of the KMS root CA, or the provider's MRENCLAVE",
    Input.OS_IMAGE: "the OS image hash that the KMS answered",
    Input.MR_KMS: "mrAggregated of the KMS that gave the keys",
    Input.STORAGE: "`storage_fs` of app-compose.json, or what the image falls back to",
    Input.GPU: "the GPUs and their attestation",
    Input.ROOTFS: "`dstack.rootfs_hash` in the command line",
    Input.CA_CERT: "the certificate file of the KMS",
    Input.RELEASE: "the release of the guest: which events it emits (dstack rtmr3 --sequence)",
    Input.APP: "what the app itself emits",
    Input.VARIANT: "the firmware's build: other variants measure other events",
}
