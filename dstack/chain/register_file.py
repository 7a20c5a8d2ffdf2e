"""Exact registers for a version, as a JSON file: one object for each shape of machine it may run on."""

from __future__ import annotations

from dstack.chain.action_data import RegisterSet
from dstack.errors import InputError
from dstack.measurement.strict_json import Members, parse_json
from dstack.values import Register

MAX_FILE = 64 * 1024
MOST = 8
_REQUIRED = ("mrtd", "rtmr0", "rtmr1", "rtmr2")


def parse_register_file(raw: bytes) -> tuple[RegisterSet, ...]:
    """Read 1 to 8 objects with `mrtd`, `rtmr0`, `rtmr1`, `rtmr2` and, if it is the same everywhere, `rtmr3`.

    Raises:
        InputError: Another form, or a register that has not 48 bytes.
    """
    entries = parse_json(raw, what="register file", limit=MAX_FILE, error=InputError)
    if not isinstance(entries, list) or not 1 <= len(entries) <= MOST:
        raise InputError(f"register file: want an array of 1 to {MOST} objects")
    return tuple(map(_registers, entries))


def _registers(entry: object) -> RegisterSet:
    members = Members.of(entry, what="register file", error=InputError)
    members.refuse_others(frozenset((*_REQUIRED, "rtmr3")))
    mrtd, rtmr0, rtmr1, rtmr2 = (members.sized(name, Register) for name in _REQUIRED)
    return RegisterSet(mrtd, rtmr0, rtmr1, rtmr2, members.sized("rtmr3", Register) if members.has("rtmr3") else None)
