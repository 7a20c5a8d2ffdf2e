"""docker-compose files: enough of them to refuse what cannot run, and to warn of images that can change.

The file is carried verbatim in the app-compose.json, so what is read here never decides what is measured. Only the tree
of nodes is read: nothing is constructed from it, so that aliases and merge keys cannot make a small file large.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent
from ruamel.yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode

from dstack.errors import ComposeMalformedError

MAX_DOCKER_COMPOSE = 256 * 1024
MAX_DEPTH = 32

_PINNED = re.compile(r"[^\s$]+@sha256:[0-9a-f]{64}", re.ASCII)
_STRING = "tag:yaml.org,2002:str"
_NULL = "tag:yaml.org,2002:null"
_MERGE_KEY = "<<"


@dataclass(frozen=True, slots=True)
class Service:
    """One service of a docker-compose file.

    Attributes:
        image: None if it is built from sources, or extends another service.
        digest_pinned: Whether what runs is named by its digest; if not, whoever serves or builds the image decides.
    """

    name: str
    image: str | None
    digest_pinned: bool


@dataclass(frozen=True, slots=True)
class DockerCompose:
    """What a docker-compose file starts."""

    services: tuple[Service, ...]

    @property
    def unpinned(self) -> tuple[Service, ...]:
        """The services whose content the compose hash does not fix."""
        return tuple(service for service in self.services if not service.digest_pinned)


def parse_docker_compose(raw: bytes) -> DockerCompose:
    """Read a docker-compose file.

    Says nothing of members other than `services`, `image`, `build` and `extends`.

    Args:
        raw: YAML in UTF-8, at most 256 KiB, nested at most 32 deep.

    Raises:
        ComposeMalformedError: It is something else, repeats a key, or has no service that could start.
    """
    root = _tree(_text(raw))
    for node in _nodes(root):
        if isinstance(node, MappingNode):
            _refuse_repeated_keys(node)
    services = _member(root, "services") if isinstance(root, MappingNode) else None
    if not isinstance(root, MappingNode):
        raise _malformed("want a mapping with the key 'services' at the top")
    if services is None:
        raise _malformed("the key 'services' is missing")
    if not isinstance(services, MappingNode) or not services.value:
        raise _malformed(f"services: want a mapping of at least one service{_where(services)}")
    return DockerCompose(tuple(_service(key, value) for key, value in _members(services).items()))


def _service(name: str, node: Node) -> Service:
    if not isinstance(node, MappingNode):
        raise _malformed(f"service {name!r}: want a mapping{_where(node)}")
    image, build, extends = (_member(node, key) for key in ("image", "build", "extends"))
    if image is None:
        if build is None and extends is None:
            raise _malformed(f"service {name!r}: want an image or a build{_where(node)}")
        return Service(name, None, digest_pinned=False)
    if not isinstance(image, ScalarNode) or image.tag != _STRING or not image.value:
        raise _malformed(f"service {name!r}: image: want a name{_where(image)}")
    return Service(name, image.value, digest_pinned=build is None and _PINNED.fullmatch(image.value) is not None)


def _text(raw: bytes) -> str:
    if len(raw) > MAX_DOCKER_COMPOSE:
        raise _malformed(f"want at most {MAX_DOCKER_COMPOSE} bytes, got {len(raw)}")
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise _malformed(f"want UTF-8, got another byte at offset {exc.start}") from exc


def _tree(text: str) -> Node:
    """Compose the nodes of the only document, after a pass that bounds how deep they nest."""
    yaml = YAML(typ="safe", pure=True)
    try:
        depth = 0
        for event in yaml.parse(text):
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise _malformed(f"want at most {MAX_DEPTH} levels of nesting{_place(event.start_mark)}")
        root: Node | None = yaml.compose(text)
    except MarkedYAMLError as exc:
        raise _malformed(f"not YAML: {exc.problem or exc.context}{_place(exc.problem_mark)}") from exc
    except YAMLError as exc:
        raise _malformed("not YAML: a character that YAML does not allow") from exc
    if root is None:
        raise _malformed("want a mapping with the key 'services', got nothing")
    return root


def _nodes(root: Node) -> Iterator[Node]:
    """Yield every node once, however often aliases lead to it."""
    waiting, seen = [root], {id(root)}
    while waiting:
        node = waiting.pop()
        yield node
        inner = node.value if isinstance(node, CollectionNode) else []
        for item in inner:
            for child in item if isinstance(item, tuple) else (item,):
                if id(child) not in seen:
                    seen.add(id(child))
                    waiting.append(child)


def _refuse_repeated_keys(node: MappingNode) -> None:
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, ScalarNode):
            raise _malformed(f"want keys that are plain values{_where(key)}")
        if key.value in seen:
            raise _malformed(f"the key {key.value[:80]!r} appears twice{_where(key)}")
        seen.add(key.value)


def _members(node: MappingNode) -> dict[str, Node]:
    """Read a mapping with what its merge keys bring; its own members win, then the first merged."""
    found: dict[str, Node] = {}
    waiting: list[Node] = [node]
    seen: set[int] = set()
    while waiting:
        mapping = waiting.pop(0)
        if id(mapping) in seen or not isinstance(mapping, MappingNode):
            continue
        seen.add(id(mapping))
        for key, value in mapping.value:
            if key.value != _MERGE_KEY:
                found.setdefault(key.value, value)
            else:
                waiting += value.value if isinstance(value, SequenceNode) else [value]
    return found


def _member(node: MappingNode, name: str) -> Node | None:
    value = _members(node).get(name)
    return None if value is None or value.tag == _NULL else value


def _where(node: Node) -> str:
    return _place(node.start_mark)


def _place(mark: object) -> str:
    line = getattr(mark, "line", None)
    return "" if line is None else f" (line {line + 1})"


def _malformed(message: str) -> ComposeMalformedError:
    return ComposeMalformedError(f"docker-compose: {message}")
