"""The form in which dstack's SDKs hash an app-compose object (guest.md 1.1): not the one that counts.

What a machine measures is the hash of the file's bytes. An SDK hashes an object that it writes anew: compact, members
sorted. Both agree only for a file that is written so.
"""

from __future__ import annotations

import json
import math
from hashlib import sha256

from dstack.errors import ComposeMalformedError
from dstack.values import ComposeHash

# What an SDK knows of this member, and leaves out where it is null.
_DOCKER_CONFIG = frozenset({"registry", "username", "token_key"})


def sdk_compose_text(app_compose: dict[str, object], *, normalize: bool = False) -> bytes:
    """Write an app-compose object as the official Python SDK (0.5.4) does before it hashes it.

    Members that are null are left out, and so are those whose name begins with an underscore.

    Args:
        app_compose: The parsed file.
        normalize: Leave out what its runner does not use, and an empty pre-launch script.

    Raises:
        ComposeMalformedError: A lone surrogate, which no UTF-8 can carry.
    """
    members = {
        name: _docker_config(value) if name == "docker_config" else value
        for name, value in app_compose.items()
        if _finite(value) is not None and not name.startswith("_")
    }
    if normalize:
        unused = {"bash": "docker_compose_file", "docker-compose": "bash_script"}.get(str(members.get("runner")))
        if unused is not None:
            members.pop(unused, None)
        if not members.get("pre_launch_script"):
            members.pop("pre_launch_script", None)
    try:
        text = json.dumps(_finite(members), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return text.encode()
    except UnicodeEncodeError as exc:
        raise ComposeMalformedError("app-compose: want Unicode text, got a lone surrogate") from exc


def sdk_compose_hash(app_compose: dict[str, object], *, normalize: bool = False) -> ComposeHash:
    """Hash that form."""
    return ComposeHash(sha256(sdk_compose_text(app_compose, normalize=normalize)).digest())


def _docker_config(value: object) -> object:
    if not isinstance(value, dict):
        return value
    return {name: each for name, each in value.items() if each is not None or name not in _DOCKER_CONFIG}


def _finite(value: object) -> object:
    """Numbers that JSON has no word for become null, as in JavaScript."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value
