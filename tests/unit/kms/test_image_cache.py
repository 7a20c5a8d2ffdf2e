"""OS images on disk: complete or absent, and only what their hash names."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pytest

from dstack.errors import ImageUnavailableError, InputError, MeasurementMalformedError
from dstack.measurement.image import CHECKSUM_FILE_NAME, os_image_hash
from dstack.values import OsImageHash
from kms.image_cache import ImageCache
from kms.turns import WAITING

FILES = {"metadata.json": b"{}", "bzImage": b"kernel"}
CHECKSUMS = b"".join(f"{sha256(content).hexdigest()}  {name}\n".encode() for name, content in FILES.items())
NAME = os_image_hash(CHECKSUMS)


@dataclass
class Source:
    """Gives these files; implements `ImageSource`."""

    files: dict[str, bytes] = field(default_factory=lambda: {**FILES, CHECKSUM_FILE_NAME: CHECKSUMS})
    asked: list[OsImageHash] = field(default_factory=list)

    def fetch(self, name: OsImageHash, folder: Path) -> None:
        """Writes them, or has none."""
        self.asked.append(name)
        if not self.files:
            raise ImageUnavailableError("nobody there")
        for each, content in self.files.items():
            (folder / each).write_bytes(content)


def _tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_image_is_fetched_once_and_verified(tmp_path: Path) -> None:
    """The first question fetches it; what its list does not name is dropped."""
    source = Source()
    source.files["extra"] = b"not listed"
    cache = ImageCache(tmp_path, source)

    folders = {cache.image(NAME), cache.image(NAME)}

    assert folders == {tmp_path / "images" / NAME.hex()}
    assert source.asked == [NAME]
    assert _tree(tmp_path) == {f"images/{NAME.hex()}/{each}" for each in (*FILES, CHECKSUM_FILE_NAME)}


def _changed(name: str, content: bytes | None) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        files.pop(name)
        if content is not None:
            files[name] = content

    return change


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_changed(CHECKSUM_FILE_NAME, None), "sha256sum.txt is missing"),
        (_changed(CHECKSUM_FILE_NAME, CHECKSUMS + b"\n"), "its sha256sum.txt has the SHA-256 "),
        (_changed("bzImage", b"another"), "bzImage is missing or not what its list says"),
        (_changed("bzImage", None), "bzImage is missing or not what its list says"),
    ],
)
def test_other_images_are_refused_and_leave_nothing(
    tmp_path: Path, change: Callable[[dict[str, bytes]], None], what: str
) -> None:
    """What came instead is named, and is not kept."""
    source = Source()
    change(source.files)

    with pytest.raises(MeasurementMalformedError, match=what):
        ImageCache(tmp_path, source).image(NAME)

    assert _tree(tmp_path) == set()


def test_image_that_cannot_be_had_is_not_asked_for_again_at_once(tmp_path: Path) -> None:
    """A stranger who claims to run it cannot make us ask more than once a minute."""
    source, now = Source({}), [0.0]
    cache = ImageCache(tmp_path, source, lambda: now[0])
    with pytest.raises(ImageUnavailableError, match="nobody there"):
        cache.image(NAME)

    now[0] = 59
    with pytest.raises(ImageUnavailableError, match=r"nobody there \(tried less than a minute ago\)"):
        cache.image(NAME)
    assert source.asked == [NAME]

    now[0] = 60
    source.files = {**FILES, CHECKSUM_FILE_NAME: CHECKSUMS}
    assert cache.image(NAME).is_dir()


@dataclass
class SlowSource(Source):
    """Gives the files when it is let go on."""

    begun: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def fetch(self, name: OsImageHash, folder: Path) -> None:
        """Waits in between."""
        self.begun.set()
        assert self.go_on.wait(60)
        super().fetch(name, folder)


def test_a_download_holds_nobody_but_a_few(tmp_path: Path) -> None:
    """While one lasts the operator clears at once, and most who ask are told to come again; what is fetched comes."""
    source = SlowSource()
    cache = ImageCache(tmp_path, source)
    with ThreadPoolExecutor(WAITING + 1) as threads:
        first = threads.submit(cache.image, NAME)
        assert source.begun.wait(60)
        (here := tmp_path / "images" / "ab" / CHECKSUM_FILE_NAME).parent.mkdir()
        here.touch()
        others = [threads.submit(cache.image, OsImageHash(bytes([number]) * 32)) for number in range(WAITING)]
        while cache._turns._places._value:
            time.sleep(0.001)
        with pytest.raises(
            ImageUnavailableError, match=r"^OS images: downloads: too many wait already, try again later$"
        ):
            cache.image(OsImageHash(b"\xff" * 32))
        cache.clear(image_hash="all", config_hash="")
        assert not here.exists()
        source.go_on.set()

    assert (first.result() / CHECKSUM_FILE_NAME).read_bytes() == CHECKSUMS
    assert [type(other.exception()) for other in others] == [MeasurementMalformedError] * WAITING


def test_without_a_source_only_what_is_here_is_known(tmp_path: Path) -> None:
    """Could not ask, and which setting would change that."""
    with pytest.raises(ImageUnavailableError, match=r"core\.image\.download_url is unset"):
        ImageCache(tmp_path, None).image(NAME)


def _filled(tmp_path: Path) -> ImageCache:
    for path in ("images/aa/x", "images/bb/x", "measurements/aa.json", "measurements/bb.json", "precious"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    return ImageCache(tmp_path, None)


@pytest.mark.parametrize(
    ("image", "config", "left"),
    [
        ("", "", {"images/aa/x", "images/bb/x", "measurements/aa.json", "measurements/bb.json"}),
        ("AA", "", {"images/bb/x", "measurements/aa.json", "measurements/bb.json"}),
        ("", "bb", {"images/aa/x", "images/bb/x", "measurements/aa.json"}),
        ("all", "", {"measurements/aa.json", "measurements/bb.json"}),
        ("all", "all", set()),
        ("cc", "cc", {"images/aa/x", "images/bb/x", "measurements/aa.json", "measurements/bb.json"}),
    ],
)
def test_what_is_named_is_forgotten(tmp_path: Path, image: str, config: str, left: set[str]) -> None:
    """One, all or none; nothing outside the two folders."""
    _filled(tmp_path).clear(image_hash=image, config_hash=config)

    assert _tree(tmp_path) == left | {"precious"}


@pytest.mark.parametrize("name", ["..", "../precious", "/", "aa/..", "a", "zz", "aa\n", "a" * 130, "."])
def test_names_that_are_paths_are_refused(tmp_path: Path, name: str) -> None:
    """Only hexadecimal can be named; nothing is removed, in either place."""
    cache = _filled(tmp_path)
    before = _tree(tmp_path)

    for names in ({"image_hash": name, "config_hash": "all"}, {"image_hash": "all", "config_hash": name}):
        with pytest.raises(InputError, match=r"^invalid cache key$"):
            cache.clear(**names)

    assert _tree(tmp_path) == before
