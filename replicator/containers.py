"""Keys for containers: each gets its own, told apart by the socket or token it was given, never by what it says."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dstack.errors import ConfigError, HandoverRefusedError, MessageMalformedError
from dstack.keys.derivation import kdf
from dstack.measurement.strict_json import Members
from replicator.documents import document
from replicator.storage import SecureFile

MAX_CONTAINERS = 64
MAX_TAG = 256
MIN_TOKEN = 32
MAX_TOKEN = 4096

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}", re.ASCII)
_BEARER = "Bearer "
_LABEL = b"dstack-replicator-getkey-v2:"


@dataclass(frozen=True, slots=True)
class Container:
    """One caller of `/getkey`: its name, from which its keys follow, and what it is told apart by.

    Attributes:
        socket: Listens for this container alone.
        token_sha256: Of the token that only this container has.
    """

    name: str
    socket: Path | None = None
    token_sha256: bytes | None = field(default=None, repr=False)


def read_containers(values: object) -> tuple[Container, ...]:
    """Read the setting `getkey.containers`: an array of tables with `name`, and `socket` or `token_file`.

    Raises:
        ConfigError: Another form, a name or socket twice, or a token file that cannot be used.
    """
    if not isinstance(values, list) or len(values) > MAX_CONTAINERS:
        raise ConfigError(f"getkey: containers: want an array of at most {MAX_CONTAINERS} tables")
    containers = tuple(_container(Members.of(value, what="getkey: container", error=ConfigError)) for value in values)
    for what in ("name", "socket", "token_sha256"):
        given = [value for each in containers if (value := getattr(each, what)) is not None]
        if len(set(given)) != len(given):
            raise ConfigError(f"getkey: containers: want each {what} once")
    return containers


def container_of_bearer(containers: Sequence[Container], authorization: str | None) -> Container:
    """Whose token a caller shows.

    Raises:
        HandoverRefusedError: Nobody's.
    """
    token = (authorization or "").removeprefix(_BEARER) if (authorization or "").startswith(_BEARER) else ""
    shown = hashlib.sha256(token.encode()).digest()
    for container in containers:
        if container.token_sha256 is not None and hmac.compare_digest(container.token_sha256, shown):
            return container
    raise HandoverRefusedError("getkey: want a container's own socket, or its token in the header Authorization")


def derive_key(secure_file: SecureFile, container: Container, tag: str) -> bytes:
    """A 32-byte key for *container* and *tag*; the same on every node that holds the secure file.

    Raises:
        KeystoreError: There is no secure file here.
    """
    name = container.name.encode()
    # The KDF joins its context without separators: with its length before it, a name cannot run into a tag.
    return kdf(secure_file.digest(), [_LABEL, len(name).to_bytes(2, "big"), name, tag.encode()])


def parse_tag(raw: bytes) -> str:
    """Read the body of `/getkey`: empty, or a JSON object with `tag`.

    Raises:
        MessageMalformedError: Another form; a name that a caller claims is refused like any other member.
    """
    if not raw:
        return ""
    members = document(raw, what="getkey", limit=8 * MAX_TAG)
    members.refuse_others(frozenset({"tag"}))
    tag = members.text("tag", "")
    if len(tag) > MAX_TAG:
        raise MessageMalformedError(f"getkey: tag: want at most {MAX_TAG} characters, got {len(tag)}")
    return tag


def _container(members: Members) -> Container:
    members.refuse_others(frozenset({"name", "socket", "token_file"}))
    name = members.text("name")
    if not _NAME.fullmatch(name):
        raise ConfigError("getkey: container: name: want 1 to 63 of a-z, 0-9, '_', '.' and '-'")
    if members.has("socket") == members.has("token_file"):
        raise ConfigError(f"getkey: container {name}: want either socket or token_file")
    if members.has("socket"):
        return Container(name, socket=Path(members.text("socket")))
    return Container(name, token_sha256=_token(Path(members.text("token_file"))))


def _token(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            token = stream.read(MAX_TOKEN + 1).strip()
    except OSError as exc:
        raise ConfigError(f"getkey: token file {path} cannot be read: {exc.strerror}") from exc
    if not MIN_TOKEN <= len(token) <= MAX_TOKEN:
        raise ConfigError(f"getkey: token file {path}: want {MIN_TOKEN} to {MAX_TOKEN} characters, got {len(token)}")
    return hashlib.sha256(token).digest()
