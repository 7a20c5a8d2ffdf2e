"""docker-compose files: each that cannot start is refused in one sentence, and changeable images are told."""

import pytest

from dstack.errors import ComposeMalformedError
from dstack.measurement.docker_compose import MAX_DOCKER_COMPOSE, DockerCompose, Service, parse_docker_compose

DIGEST = "sha256:" + "ab" * 32


def test_services_and_their_images() -> None:
    """Only an image named by its digest is fixed: neither a tag, nor a variable, nor a build."""
    raw = f"""
x-all: &all
  restart: always
services:
  pinned: {{image: "nginx:1.27@{DIGEST}", <<: *all}}
  tagged: {{image: nginx:1.27}}
  variable: {{image: "nginx@${{DIGEST}}"}}
  built: {{build: .}}
  both: {{build: ., image: "me@{DIGEST}"}}
  extending: {{extends: {{service: pinned}}}}
"""

    compose = parse_docker_compose(raw.encode())

    assert compose == DockerCompose(
        (
            Service("pinned", f"nginx:1.27@{DIGEST}", digest_pinned=True),
            Service("tagged", "nginx:1.27", digest_pinned=False),
            Service("variable", "nginx@${DIGEST}", digest_pinned=False),
            Service("built", None, digest_pinned=False),
            Service("both", f"me@{DIGEST}", digest_pinned=False),
            Service("extending", None, digest_pinned=False),
        )
    )
    assert [service.name for service in compose.unpinned] == ["tagged", "variable", "built", "both", "extending"]


def test_merge_keys_bring_members() -> None:
    """A service has the image of what it merges, its own image wins, and the first merged wins over the second."""
    raw = b"""
x-a: &a {image: first}
x-b: &b {image: second, build: .}
services:
  merged: {<<: [*a, *b]}
  own: {<<: *b, image: own, build: null}
"""

    assert [service.image for service in parse_docker_compose(raw).services] == ["first", "own"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"\xff", "docker-compose: want UTF-8, got another byte at offset 0"),
        (b"services: [", "docker-compose: not YAML: .* \\(line 1\\)"),
        (b"a: 1\n\tb: 2", "docker-compose: not YAML: .* \\(line 2\\)"),
        (b"a: *nobody", "docker-compose: not YAML: .*nobody"),
        (b"a: \x00", "docker-compose: not YAML: a character that YAML does not allow"),
        (b"a: 1\n---\nb: 2", "docker-compose: not YAML: "),
        (b"", "docker-compose: want a mapping with the key 'services', got nothing"),
        (b"- a", "docker-compose: want a mapping with the key 'services' at the top"),
        (b"text", "docker-compose: want a mapping with the key 'services' at the top"),
        (b"version: '3'", "docker-compose: the key 'services' is missing"),
        (b"services:", "docker-compose: the key 'services' is missing"),
        (b"services: {}", "docker-compose: services: want a mapping of at least one service \\(line 1\\)"),
        (b"services: []", "docker-compose: services: want a mapping of at least one service"),
        (b"services: {a: nginx}", "service 'a': want a mapping"),
        (b"services: {a: }", "service 'a': want a mapping"),
        (b"services: {a: {}}", "service 'a': want an image or a build"),
        (b"services:\n  a:\n    ports: []", "service 'a': want an image or a build \\(line 3\\)"),
        (b"services: {a: {image: }}", "service 'a': want an image or a build"),
        (b"services: {a: {image: 3}}", "service 'a': image: want a name"),
        (b"services: {a: {image: ''}}", "service 'a': image: want a name"),
        (b"services: {a: {image: [x]}}", "service 'a': image: want a name"),
        (b"services: {a: {image: x}, a: {image: y}}", "the key 'a' appears twice"),
        (b"services: {a: {image: x, image: y}}", "the key 'image' appears twice"),
        (b"services: {a: {image: x}}\nx: {y: [{z: 1, 'z': 2}]}", "the key 'z' appears twice \\(line 2\\)"),
        (b"services: {a: {image: x}}\n? [b]\n: c", "want keys that are plain values"),
        (b"a: " + b"[" * 32 + b"]" * 32, "want at most 32 levels of nesting"),
        (b"#" * (MAX_DOCKER_COMPOSE + 1), "want at most 262144 bytes, got 262145"),
    ],
)
def test_a_file_that_cannot_start_is_refused(raw: bytes, message: str) -> None:
    """One sentence: what is wrong, and on which line."""
    with pytest.raises(ComposeMalformedError, match=message) as refusal:
        parse_docker_compose(raw)

    assert "\n" not in str(refusal.value)


def test_aliases_do_not_multiply() -> None:
    """A file of thirty lines that would expand to a billion members is read in no time."""
    bomb = "x0: &x0 {k: v}\n" + "".join(
        f"x{n}: &x{n} {{<<: [{', '.join([f'*x{n - 1}'] * 9)}]}}\n" for n in range(1, 30)
    )

    compose = parse_docker_compose((bomb + "services: {a: {<<: *x29, image: x}}").encode())

    assert compose.services == (Service("a", "x", digest_pinned=False),)


def test_a_loop_of_aliases_ends() -> None:
    """A node that holds itself is walked once."""
    with pytest.raises(ComposeMalformedError, match="service 'a': want an image or a build"):
        parse_docker_compose(b"services: {a: &a {<<: *a}}")
