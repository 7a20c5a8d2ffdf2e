"""Downloading OS images: one archive from one URL, within limits that whoever serves it cannot move."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx

from dstack.errors import ImageUnavailableError
from dstack.values import OsImageHash
from dstack.web.client import bounded_client
from dstack.web.urls import shown_url

PLACEHOLDER = "{OS_IMAGE_HASH}"

_PIECE = 1 << 16
_MOST_FILES = 64
# Everything but the content of files: what is said about them, folders, padding. All of it stays in memory.
_MOST_BESIDES = 1 << 20
# The names of measurement.md 6; `./` in front is how tar writes a folder's content.
_NAME = re.compile(r"(?:\./)?([A-Za-z0-9_+-][A-Za-z0-9._+-]{0,254})")


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """How much of an archive is taken.

    Attributes:
        compressed: Bytes that are received.
        extracted: Bytes that are written.
        time: From the first byte of the question to the last of the answer.
    """

    compressed: int = 2 << 30
    extracted: int = 4 << 30
    time: timedelta = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class ArchiveSource:
    """Images as `.tar.gz` behind a URL; implements `ImageSource`.

    Attributes:
        url: With `{OS_IMAGE_HASH}` where the hash goes.
        limits: How much is taken.
    """

    url: str
    limits: DownloadLimits = DownloadLimits()

    def fetch(self, name: OsImageHash, folder: Path) -> None:
        """As `ImageSource` says; only plain files with plain names are written."""
        url = self.url.replace(PLACEHOLDER, name.hex())
        try:
            with (
                bounded_client(seconds=self.limits.time.total_seconds()) as client,
                client.stream("GET", url) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    raise ImageUnavailableError(f"{shown_url(url)} answered with status {response.status_code}")
                self._extract(_Stream(self._pieces(response)), folder)
        except httpx.TimeoutException as exc:
            raise ImageUnavailableError(f"archive: want it within {self.limits.time}, got nothing or a part") from exc
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise ImageUnavailableError(f"{shown_url(url)} did not answer: {type(exc).__name__}") from exc
        except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, RecursionError) as exc:
            raise ImageUnavailableError(f"{shown_url(url)}: want a .tar.gz, got something else") from exc

    def _pieces(self, response: httpx.Response) -> Iterator[bytes]:
        received = 0
        for piece in response.iter_raw(_PIECE):
            received += len(piece)
            if received > self.limits.compressed:
                raise ImageUnavailableError(f"archive: want at most {self.limits.compressed} bytes, got more")
            yield piece

    def _extract(self, stream: _Stream, folder: Path) -> None:
        content, written, files = _Content(stream), 0, 0
        with tarfile.open(fileobj=content, mode="r|", bufsize=_PIECE) as archive:
            for member in archive:
                if member.isdir():
                    continue
                match = _NAME.fullmatch(member.name)
                if match is None or not member.isreg() or member.issparse():
                    raise ImageUnavailableError(f"archive: want plain files, got {member.name[:80]!r}")
                if member.size < 0:
                    raise ImageUnavailableError(f"archive: {member.name[:80]!r}: want a size, got {member.size}")
                files, written = files + 1, written + member.size
                if files > _MOST_FILES or written > self.limits.extracted:
                    raise ImageUnavailableError(
                        f"archive: want at most {_MOST_FILES} files of {self.limits.extracted} bytes together, got more"
                    )
                content.allowed += member.size
                _write(archive, member, folder / match[1])


class _Content(io.RawIOBase):
    """What was compressed. Only so many bytes are read as files were counted, and a few besides.

    tarfile takes into memory at once whatever is said about a member, of whichever size and however often.
    """

    def __init__(self, stream: _Stream) -> None:
        self.allowed = _MOST_BESIDES
        self._stream = gzip.GzipFile(fileobj=stream)

    def read(self, size: int = -1) -> bytes:
        """At most *size* bytes; none at the end."""
        piece = self._stream.read(size)
        self.allowed -= len(piece)
        if self.allowed < 0:
            raise ImageUnavailableError(f"archive: want at most {_MOST_BESIDES} bytes besides its files, got more")
        return piece


class _Stream(io.RawIOBase):
    """Pieces as a file that is read once, from front to back."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1) -> bytes:
        """At most *size* bytes; none at the end."""
        if not self._left:
            self._left = next(self._pieces, b"")
        piece, self._left = self._left[:size], self._left[size:]
        return piece


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    content = archive.extractfile(member)
    if content is None:
        raise ImageUnavailableError(f"archive: {member.name[:80]!r} has no content")
    try:
        with path.open("xb") as out:
            while piece := content.read(_PIECE):
                out.write(piece)
    except FileExistsError as exc:
        raise ImageUnavailableError(f"archive: {member.name[:80]!r} is in it twice") from exc
