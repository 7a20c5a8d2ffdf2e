"""Downloading an OS image, from a server that may do as it likes."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi import FastAPI, Response

from dstack.errors import ImageUnavailableError
from dstack.transport.listener import Listener
from dstack.values import OsImageHash
from kms.image_download import ArchiveSource, DownloadLimits
from tests.http_answers import trickling

NAME = OsImageHash(bytes(range(32)))


def _archive(*members: tuple[str, bytes, bytes]) -> bytes:
    """A .tar.gz of members with a name, a type and a content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "/etc/passwd"
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


GOOD = _archive(("./", tarfile.DIRTYPE, b""), ("./a.json", tarfile.REGTYPE, b"{}"), ("b", tarfile.REGTYPE, b"x" * 1000))


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Serves one body for one image; gives the URL with the placeholder."""
    app, bodies = FastAPI(), {}

    def answer(name: str) -> Response:
        return bodies.get(name, Response(status_code=404))

    app.add_api_route("/secret/{name}", answer, response_model=None)
    with Listener(app).running() as listener:

        def put(body: bytes) -> str:
            bodies[f"mr_{NAME.hex()}.tar.gz"] = Response(body)
            return f"http://127.0.0.1:{listener.port}/secret/mr_{{OS_IMAGE_HASH}}.tar.gz"

        yield put


def test_files_arrive(serve: Callable[..., str], tmp_path: Path) -> None:
    """The archive of the hash in the URL, its plain files under their plain names."""
    ArchiveSource(serve(GOOD)).fetch(NAME, tmp_path)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.json": b"{}", "b": b"x" * 1000}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../a", tarfile.REGTYPE),
        ("/a", tarfile.REGTYPE),
        ("a/b", tarfile.REGTYPE),
        (".hidden", tarfile.REGTYPE),
        ("..", tarfile.REGTYPE),
        ("a", tarfile.SYMTYPE),
        ("a", tarfile.LNKTYPE),
        ("a", tarfile.CHRTYPE),
        ("a", tarfile.FIFOTYPE),
    ],
)
def test_anything_but_plain_files_is_refused(serve: Callable[..., str], tmp_path: Path, name: str, kind: bytes) -> None:
    """No member leaves the folder, none is a link or a device."""
    with pytest.raises(ImageUnavailableError, match="archive: want plain files, got"):
        ArchiveSource(serve(_archive((name, kind, b"")))).fetch(NAME, tmp_path)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        (DownloadLimits(compressed=len(GOOD) - 1), f"want at most {len(GOOD) - 1} bytes"),
        (DownloadLimits(extracted=1001), "files of 1001 bytes together, got more"),
    ],
)
def test_more_than_the_limits_is_not_taken(
    serve: Callable[..., str], tmp_path: Path, limits: DownloadLimits, what: str
) -> None:
    """However much is sent, so much is received and written at most."""
    with pytest.raises(ImageUnavailableError, match=what):
        ArchiveSource(serve(GOOD), limits).fetch(NAME, tmp_path)


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n" + GOOD[:20]])
def test_slow_server_is_given_up(tmp_path: Path, start: bytes) -> None:
    """The whole download has a deadline, not only each part."""
    with trickling(start) as trickle:
        source = ArchiveSource(trickle.url + "/{OS_IMAGE_HASH}", DownloadLimits(time=timedelta(seconds=0.5)))

        with pytest.raises(ImageUnavailableError, match=r"want it within 0:00:00\.500000, got nothing or a part"):
            source.fetch(NAME, tmp_path)


def test_same_name_twice_is_refused(serve: Callable[..., str], tmp_path: Path) -> None:
    """The second of two files does not replace the first."""
    twice = _archive(("a", tarfile.REGTYPE, b"1"), ("./a", tarfile.REGTYPE, b"2"))

    with pytest.raises(ImageUnavailableError, match="is in it twice"):
        ArchiveSource(serve(twice)).fetch(NAME, tmp_path)


@pytest.mark.parametrize("body", [b"", b"no archive", GOOD[: len(GOOD) // 2], GOOD[:40]])
def test_other_content_is_refused(serve: Callable[..., str], tmp_path: Path, body: bytes) -> None:
    """Also when it begins well."""
    with pytest.raises(ImageUnavailableError, match=r"want a \.tar\.gz, got something else"):
        ArchiveSource(serve(body)).fetch(NAME, tmp_path)


def test_absent_image_and_absent_server(serve: Callable[..., str], tmp_path: Path) -> None:
    """Status and host are told, the path is not: it may be a credential."""
    absent = serve(GOOD).replace("mr_", "no_")

    for url, what in ((absent, "answered with status 404"), ("http://127.0.0.1:1/secret", "did not answer")):
        with pytest.raises(ImageUnavailableError, match=what) as refused:
            ArchiveSource(url).fetch(NAME, tmp_path)
        assert "secret" not in str(refused.value)


def _header(kind: bytes, size: int) -> bytes:
    """A header of this type that says this size."""
    header = bytearray(tarfile.TarInfo("a").tobuf())
    header[156:157] = kind
    header[124:136] = b"\xff" + size.to_bytes(11, "big", signed=True) if size < 0 else b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _pax(words: bytes) -> bytes:
    """A header about the next member, with one line of words."""
    line = next(b"%d %s\n" % (size, words) for size in range(200) if len(b"%d %s\n" % (size, words)) == size)
    return _header(tarfile.XHDTYPE, len(line)) + line.ljust(512, b"\0")


LARGEST = 1 << 20
LARGE = "archive: want at most 1048576 bytes besides its files, got more"


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_that_would_fill_the_memory_is_refused(serve: Callable[..., str], tmp_path: Path, kind: bytes) -> None:
    """What is said about a member is read at once: it may not be of a size that whoever serves it chooses."""
    archive = gzip.compress(_header(kind, LARGEST) + bytes(LARGEST + 1024))

    with pytest.raises(ImageUnavailableError, match=LARGE):
        ArchiveSource(serve(archive)).fetch(NAME, tmp_path)


@pytest.mark.parametrize(
    "first", [_header(tarfile.REGTYPE, -8192), _pax(b"size=-8192") + _header(tarfile.REGTYPE, 0)], ids=["own", "pax"]
)
def test_a_size_below_nothing_makes_no_room(serve: Callable[..., str], tmp_path: Path, first: bytes) -> None:
    """Nothing is written, neither of that member nor of the next one. Some versions of tarfile see the end there."""
    archive = gzip.compress(first + _header(tarfile.REGTYPE, 4096) + b"x" * 4096 + bytes(1024))

    with suppress(ImageUnavailableError):
        ArchiveSource(serve(archive), DownloadLimits(extracted=1000)).fetch(NAME, tmp_path)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(_header(tarfile.GNUTYPE_SPARSE, 0), id="old"),
        pytest.param(_pax(b"GNU.sparse.map=0,1") + _header(tarfile.REGTYPE, 1) + b"x".ljust(512, b"\0"), id="new"),
    ],
)
def test_files_with_holes_are_refused(serve: Callable[..., str], tmp_path: Path, content: bytes) -> None:
    """They are larger than what is sent of them."""
    with pytest.raises(ImageUnavailableError, match="archive: want plain files, got 'a'"):
        ArchiveSource(serve(gzip.compress(content + bytes(1024)))).fetch(NAME, tmp_path)


@pytest.mark.parametrize(
    ("piece", "what"),
    [
        pytest.param(_header(tarfile.DIRTYPE, 0), LARGE, id="folders"),
        pytest.param(_pax(b"comment=x"), f"{LARGE}|something else", id="headers-about-headers"),
    ],
)
def test_headers_without_end_are_refused(serve: Callable[..., str], tmp_path: Path, piece: bytes, what: str) -> None:
    """Each of them is kept in memory, though nothing is made."""
    archive = gzip.compress(piece * (LARGEST // len(piece) + 1) + bytes(1024))

    with pytest.raises(ImageUnavailableError, match=what):
        ArchiveSource(serve(archive)).fetch(NAME, tmp_path)


def test_large_files_are_no_more_than_their_size(serve: Callable[..., str], tmp_path: Path) -> None:
    """The content of files is not counted as something besides, and nothing of it is missing."""
    contents = {name: bytes([number]) * (LARGEST + number) for number, name in enumerate("abc")}
    archive = _archive(*((name, tarfile.REGTYPE, content) for name, content in contents.items()))

    ArchiveSource(serve(archive)).fetch(NAME, tmp_path)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == contents
