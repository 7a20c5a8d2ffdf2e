"""What this process gives up so that its memory stays its own."""

from __future__ import annotations

import ctypes
import os
import resource

from dstack.errors import ConfigError

# <linux/prctl.h>
_PR_SET_DUMPABLE = 4


def forbid_dumps() -> None:
    """No core file, whatever kills this process, and no other process of this user may read its memory.

    Raises:
        ConfigError: The system refuses.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The limit alone does not bind a program that the system pipes cores to.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise ConfigError(f"want to forbid core dumps, got {os.strerror(ctypes.get_errno())}")
