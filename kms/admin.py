"""The operator's service: what may be forgotten of the image cache, for whoever proves to be the operator (kms.md 2.2).

It listens apart from the KMS service, and answers nothing without a token or a password.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import bcrypt
from fastapi import FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from starlette.concurrency import run_in_threadpool

from dstack.errors import ConfigError, RefusedError
from dstack.transport.server import CallContext, Method, Observer, prpc_app
from dstack.wire.kms import ClearImageCacheRequest, LegacyClearImageCacheRequest
from kms.rate import RateLimit, RateLimited

CHALLENGE = {"WWW-Authenticate": 'Basic realm="dstack-kms admin"'}

ATTEMPTS_A_SECOND = 20.0
ATTEMPTS_A_SECOND_OF_PEER = 5.0
"""A password takes a tenth of a second to compare, for whoever sends one."""

_LONGEST_CREDENTIALS = 4096
_LONGEST_PASSWORD = 72  # of bcrypt


class ImageCache(Protocol):
    """What is kept of OS images."""

    def clear(self, *, image_hash: str, config_hash: str) -> None:
        """Forget an image, or a measurement; `all` is every one, empty is none.

        Raises:
            InputError: A name is not hexadecimal.
        """
        ...


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who the operator is. One of the two must be there; neither shows in `repr`.

    Attributes:
        token_digest: SHA-256 of the token; empty for none.
        passwords: bcrypt hashes by user.
    """

    token_digest: bytes = field(repr=False, default=b"")
    passwords: Mapping[str, bytes] = field(repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.token_digest and not self.passwords:
            raise ConfigError("core.admin: want auth_token or htpasswd_file, got neither")

    @classmethod
    def of_token(cls, token: str, htpasswd: str = "") -> Credentials:
        """Those of a token, and of the users in an htpasswd file; space around the token is none of it.

        Raises:
            ConfigError: Both are empty, or the file is not of bcrypt.
        """
        token = token.strip()
        digest = hashlib.sha256(token.encode()).digest() if token else b""
        return cls(digest, parse_htpasswd(htpasswd))

    def accept(self, authorization: str, admin_token: str) -> bool:
        """Whether the values of these headers prove to be the operator; slow for passwords, by design."""
        if len(authorization) > _LONGEST_CREDENTIALS or len(admin_token) > _LONGEST_CREDENTIALS:
            return False
        if self._is_token(admin_token):
            return True
        scheme, _, rest = authorization.partition(" ")
        if scheme.lower() == "basic":
            return self._accept_basic(rest.strip())
        return scheme.lower() == "bearer" and self._is_token(rest.strip())

    def _is_token(self, token: str) -> bool:
        """Digests are compared, in a time that tells nothing of where they differ."""
        given = hashlib.sha256(token.encode()).digest()
        return bool(self.token_digest) and hmac.compare_digest(given, self.token_digest)

    def _accept_basic(self, encoded: str) -> bool:
        try:
            user, colon, password = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return False
        if not colon:
            return False
        if self._is_token(user) or self._is_token(password):
            return True
        if not self.passwords or len(password.encode()) > _LONGEST_PASSWORD:
            return False
        # An unknown user costs as much time as a known one.
        known = self.passwords.get(user)
        matches = bcrypt.checkpw(password.encode(), known or next(iter(self.passwords.values())))
        return matches and known is not None


@dataclass(frozen=True, slots=True)
class LegacyCache:
    """The same for callers up to 0.5.11, who ask the KMS service and put the token into the message."""

    cache: ImageCache
    credentials: Credentials

    def clear(self, request: LegacyClearImageCacheRequest, _context: CallContext) -> None:
        """Forget, if the token is the operator's.

        Raises:
            RefusedError: It is not.
            InputError: A name is not hexadecimal.
        """
        if not self.credentials.accept("", request.token):
            raise RefusedError("Invalid token")
        self.cache.clear(image_hash=request.image_hash, config_hash=request.config_hash)


def parse_htpasswd(text: str) -> dict[str, bytes]:
    """Read the lines of an htpasswd file; only bcrypt (`htpasswd -B`) is taken.

    Raises:
        ConfigError: A line is of another form; the message names its number and nothing of it.
    """
    passwords: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), 1):
        user, _, hashed = line.strip().partition(":")
        if not user or user.startswith("#"):
            continue
        if not hashed.startswith(("$2y$", "$2b$", "$2a$")) or not _is_bcrypt(hashed.encode()):
            raise ConfigError(f"core.admin.htpasswd_file: line {number}: want USER:BCRYPT, as `htpasswd -B` writes it")
        passwords[user] = hashed.encode()
    return passwords


def _is_bcrypt(hashed: bytes) -> bool:
    try:
        bcrypt.checkpw(b"", hashed)
    except ValueError:
        return False
    return True


def admin_app(
    cache: ImageCache, credentials: Credentials, observe: Observer | None = None, *, limit: RateLimit | None = None
) -> FastAPI:
    """The application of the operator's listener.

    Args:
        cache: What may be forgotten.
        credentials: Who the operator is.
        observe: Told of every call that the operator made.
        limit: How often anybody may try; one of `ATTEMPTS_A_SECOND` if there is none.
    """

    def clear(request: ClearImageCacheRequest, _context: CallContext) -> None:
        cache.clear(image_hash=request.image_hash, config_hash=request.config_hash)

    table = {"ClearImageCache": Method(ClearImageCacheRequest, clear)}
    app = prpc_app(table, prefix="Admin.", observe=observe)

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        """Before anything of the request is read, beyond its head."""
        headers = request.headers.get("authorization", ""), request.headers.get("x-admin-token", "")
        if not await run_in_threadpool(credentials.accept, *headers):
            return PlainTextResponse("want a token or a password", status_code=401, headers=CHALLENGE)
        return await go_on(request)

    # Added last: it stands before the guard.
    attempts = limit or RateLimit(everybody=ATTEMPTS_A_SECOND, peer=ATTEMPTS_A_SECOND_OF_PEER)
    app.add_middleware(RateLimited, limit=attempts, path="/")
    return app
