"""The body of `/configure`: which chain endpoints a node shall ask, and nothing else. Pure."""

from __future__ import annotations

from dstack.errors import ConfigError
from dstack.measurement.strict_json import Members, parse_json
from replicator.config import MAX_FILE, checked_urls

_OLD_KEY = "ETH_RPC_URL"


def parse_configure(raw: bytes, *, old_forms: bool) -> tuple[str, ...]:
    """Read the endpoints: a JSON object with `rpc_urls`, or in the old form the line `ETH_RPC_URL=<url>`.

    Raises:
        ConfigError: Another form, another key, the old form where it is not taken, or what is no plain URL.
    """
    if len(raw) > MAX_FILE:
        raise ConfigError(f"configure: want at most {MAX_FILE} bytes, got {len(raw)}")
    if raw.lstrip()[:1] == b"{":
        value = parse_json(raw, what="configure", limit=MAX_FILE, error=ConfigError)
        members = Members.of(value, what="configure", error=ConfigError)
        members.refuse_others(frozenset({"rpc_urls"}))
        return checked_urls(members.texts("rpc_urls"), what="configure: rpc_urls")
    if not old_forms:
        raise ConfigError("configure: want a JSON object with rpc_urls; the setting protocol.old_forms is off")
    return checked_urls(_old(raw), what=f"configure: {_OLD_KEY}")


def _old(raw: bytes) -> tuple[str, ...]:
    try:
        lines = [line.strip() for line in raw.decode("ascii").splitlines() if line.strip()]
    except UnicodeError as exc:
        raise ConfigError("configure: want ASCII, got other bytes") from exc
    pairs = [line.partition("=") for line in lines]
    for key, equals, _ in pairs:
        if not equals or key != _OLD_KEY:
            raise ConfigError(f"configure: want one line {_OLD_KEY}=<url>, got key {key[:40]!r}")
    if len(pairs) != 1:
        raise ConfigError(f"configure: want one line {_OLD_KEY}=<url>, got {len(pairs)}")
    return (pairs[0][2],)
