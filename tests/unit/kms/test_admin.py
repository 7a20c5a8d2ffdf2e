"""The operator's service: nothing without a token or a password."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import bcrypt
import httpx
import pytest

from dstack.errors import ConfigError, InputError
from dstack.transport.listener import Listener
from kms.admin import Credentials, admin_app, parse_htpasswd
from kms.rate import RateLimit

TOKEN = "the operator's token"
HTPASSWD = "# made by htpasswd -B\n\nanna:" + bcrypt.hashpw(b"her password", bcrypt.gensalt(4)).decode() + "\n"


class Counting(dict[str, bytes]):
    """The passwords; notes whose is looked up."""

    def __init__(self, passwords: Mapping[str, bytes], seen: list[str]) -> None:
        super().__init__(passwords)
        self.seen = seen

    def get(self, user: str, default: bytes | None = None) -> bytes | None:  # type: ignore[override]
        """As any other."""
        self.seen.append(user)
        return super().get(user, default)


@dataclass
class Cache:
    """Remembers what it was told to forget; implements `ImageCache`."""

    cleared: list[tuple[str, str]] = field(default_factory=list)

    def clear(self, *, image_hash: str, config_hash: str) -> None:
        """Refuses one name, as the real one would."""
        if image_hash == "../x":
            raise InputError("invalid cache key")
        self.cleared.append((image_hash, config_hash))


@pytest.fixture
def cache() -> Cache:
    """One that forgot nothing yet."""
    return Cache()


@pytest.fixture
def url(cache: Cache) -> Iterator[str]:
    """Where the service is."""
    with Listener(admin_app(cache, Credentials.of_token(TOKEN, HTPASSWD))).running() as listener:
        yield f"http://127.0.0.1:{listener.port}/prpc/Admin.ClearImageCache?json"


def _basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {TOKEN}"},
        {"authorization": f"bearer {TOKEN}"},
        {"X-Admin-Token": TOKEN},
        {"X-Admin-Token": TOKEN, "Authorization": "Bearer of a proxy's"},
        {"X-Admin-Token": TOKEN, **_basic("anna", "another password")},
        {"X-Admin-Token": "another", "Authorization": f"Bearer {TOKEN}"},
        _basic(TOKEN, ""),
        _basic("anybody", TOKEN),
        _basic("anna", "her password"),
    ],
)
def test_operator_is_known_in_each_of_upstreams_ways(url: str, cache: Cache, headers: dict[str, str]) -> None:
    """Token as bearer, in a header of its own, or as either half of Basic; or a user's password."""
    answer = httpx.post(url, headers=headers, json={"image_hash": "ab", "config_hash": "cd"})

    assert (answer.status_code, answer.text) == (200, "null")
    assert cache.cleared == [("ab", "cd")]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Digest {TOKEN}"},
        {"X-Admin-Token": TOKEN[:-1]},
        {"Authorization": "Basic ???"},
        {"Authorization": "Basic " + base64.b64encode(b"no colon").decode()},
        {"Authorization": "Basic " + base64.b64encode(b"\xff:\xff").decode()},
        {"Authorization": "Bearer " + "x" * 5000},
        _basic("anna", "another password"),
        _basic("anna", "her password" + "x" * 100),
        _basic("berta", "her password"),
        _basic("", ""),
    ],
)
def test_nobody_else_is(url: str, cache: Cache, headers: dict[str, str]) -> None:
    """Anything else is answered with 401 and the challenge, whatever it asked for."""
    answers = [
        httpx.post(url, headers=headers, json={}),
        httpx.get(url.replace("ClearImageCache", "x"), headers=headers),
    ]

    assert [answer.status_code for answer in answers] == [401, 401]
    assert answers[0].headers["www-authenticate"] == 'Basic realm="dstack-kms admin"'
    assert cache.cleared == []


def test_passwords_are_not_tried_at_any_rate(cache: Cache) -> None:
    """Whoever tries too often is refused before a password is compared, on every path; others are not."""
    compared: list[str] = []
    given = Credentials.of_token(TOKEN, HTPASSWD)
    counting = replace(given, passwords=Counting(given.passwords, compared))
    limit = RateLimit(everybody=100, peer=2, now=lambda: 0.0)
    with Listener(admin_app(cache, counting, limit=limit)).running() as listener:
        url = f"http://127.0.0.1:{listener.port}/prpc/Admin.ClearImageCache?json"
        tried = [httpx.post(url, headers=_basic("anna", f"password {number}"), json={}) for number in range(6)]
        elsewhere = httpx.get(url.replace("/prpc/", "/"), headers=_basic("anna", "another"))
        with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.2")) as operator:
            told = operator.post(url, headers={"X-Admin-Token": TOKEN}, json={"image_hash": "ab"})

    assert [answer.status_code for answer in tried] == [401] * 4 + [429] * 2
    assert (elsewhere.status_code, told.status_code, compared) == (429, 200, ["anna"] * 4)


def test_name_that_is_none_is_refused(url: str) -> None:
    """The cache's refusal reaches the operator."""
    answer = httpx.post(url, headers={"X-Admin-Token": TOKEN}, json={"image_hash": "../x"})

    assert (answer.status_code, answer.json()["error"]) == (400, "invalid cache key")


@pytest.mark.parametrize("token", ["", " \n"])
def test_without_credentials_there_is_no_service(token: str) -> None:
    """An empty token is none, and an empty file too."""
    with pytest.raises(ConfigError, match=r"core\.admin: want auth_token or htpasswd_file, got neither"):
        Credentials.of_token(token, "# nobody\n")


def test_space_around_a_token_is_none_of_it() -> None:
    """It may come from a file that ends with a line."""
    assert Credentials.of_token(f"{TOKEN}\n") == Credentials.of_token(TOKEN)


@pytest.mark.parametrize("line", ["anna:secret", "anna:{SHA}0000", "anna:$apr1$x$y", "anna", "anna:$2y$05$short"])
def test_other_forms_of_passwords_are_refused(line: str) -> None:
    """Only bcrypt is taken; the line is named and not shown."""
    with pytest.raises(ConfigError, match="line 2: want USER:BCRYPT") as refused:
        parse_htpasswd("#\n" + line)

    assert "secret" not in str(refused.value)


def test_secrets_do_not_show() -> None:
    """Credentials can be printed."""
    assert repr(Credentials.of_token(TOKEN, HTPASSWD)) == "Credentials()"
