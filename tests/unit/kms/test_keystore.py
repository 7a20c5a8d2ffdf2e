"""Root keys at rest: complete or absent, whatever happens."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dstack.errors import KeyMalformedError, KeystoreError
from kms.generation import generate_keys, reissue_rpc_certificate
from kms.keystore import KeySet, open_keystore
from tests.unit.kms.conftest import AT, kms_machine
from tests.worlds import root_keys

INFO = '{"ca_pubkey":"00"}'
FILES = {
    "root-ca.crt",
    "root-ca.key",
    "tmp-ca.crt",
    "tmp-ca.key",
    "rpc.crt",
    "rpc.key",
    "root-k256.key",
    "rpc-domain",
    "bootstrap-info.json",
}


@pytest.fixture(scope="module")
def keys() -> KeySet:
    """Fresh keys."""
    return generate_keys("kms.example", kms_machine(), at=AT)


def test_created_keys_are_loaded_again(tmp_path: Path, keys: KeySet) -> None:
    """What was created is what is loaded, by another process too."""
    with open_keystore(tmp_path) as store:
        assert store.exists() is False
        store.create(keys, INFO)

    with open_keystore(tmp_path) as store:
        assert (store.exists(), store.load(), store.bootstrap_info()) == (True, keys, INFO.encode())


def test_files_are_upstreams_and_private(tmp_path: Path, keys: KeySet) -> None:
    """The files have upstream's names and forms, and nobody else may read them."""
    with open_keystore(tmp_path / "certs") as store:
        store.create(keys, INFO)

    folder = tmp_path / "certs"
    assert {path.name for path in folder.iterdir()} == FILES
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "root-k256.key").read_bytes() == root_keys(keys.roots).k256
    assert (folder / "root-ca.key").read_text().startswith("-----BEGIN PRIVATE KEY-----")


def test_keys_that_others_can_open_are_closed(tmp_path: Path, keys: KeySet) -> None:
    """Keys that dstack up to 0.5.11 left readable are so no more, and named once; certificates are for everybody."""
    with open_keystore(tmp_path) as store:
        store.create(keys, INFO)
        for path in tmp_path.iterdir():
            path.chmod(0o644)

        closed = store.close_to_others()

        assert closed == ("root-ca.key", "root-k256.key", "tmp-ca.key", "rpc.key")
        assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in closed} == {0o600}
        assert stat.S_IMODE((tmp_path / "root-ca.crt").stat().st_mode) == 0o644
        assert (store.close_to_others(), store.load()) == ((), keys)


def test_keys_that_cannot_be_closed_are_named(tmp_path: Path, keys: KeySet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses is named together with the file."""
    with open_keystore(tmp_path) as store:
        store.create(keys, None)
        (tmp_path / "rpc.key").chmod(0o640)

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(Path, "chmod", refuse)
        with pytest.raises(KeystoreError, match=r"others can open rpc\.key: Operation not permitted"):
            store.close_to_others()


@pytest.mark.parametrize("name", sorted(FILES))
def test_any_file_that_is_there_prevents_creation(tmp_path: Path, keys: KeySet, name: str) -> None:
    """Nothing is ever overwritten: a single file of an earlier KMS is enough to refuse."""
    (tmp_path / name).write_text("precious")

    with open_keystore(tmp_path) as store, pytest.raises(KeystoreError, match="KMS has already been bootstrapped"):
        store.create(keys, INFO)

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "precious"}


def test_missing_files_are_named(tmp_path: Path, keys: KeySet) -> None:
    """A store with some of its files is neither empty nor usable."""
    with open_keystore(tmp_path) as store:
        store.create(keys, INFO)
        (tmp_path / "root-k256.key").unlink()
        (tmp_path / "tmp-ca.crt").unlink()

        with pytest.raises(KeystoreError, match=r"missing tmp-ca\.crt, root-k256\.key"):
            store.exists()


def test_directory_has_one_user(tmp_path: Path) -> None:
    """A second process cannot open the store while the first has it."""
    with (
        open_keystore(tmp_path),
        pytest.raises(KeystoreError, match="another process holds these keys"),
        open_keystore(tmp_path),
    ):
        pass


def test_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """A path that cannot be a directory is named."""
    (tmp_path / "certs").write_text("")

    with pytest.raises(KeystoreError, match="certs: cannot be used: File exists"), open_keystore(tmp_path / "certs"):
        pass


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("root-ca.key", b"not a key"),
        ("root-k256.key", bytes(31)),
        ("root-k256.key", bytes(32)),
        ("tmp-ca.crt", b"not a certificate"),
        ("rpc.key", b"\xff"),
    ],
)
def test_damaged_file_is_refused(tmp_path: Path, keys: KeySet, name: str, content: bytes) -> None:
    """A file that is not of its form stops the load, and its content is not told."""
    with open_keystore(tmp_path) as store:
        store.create(keys, INFO)
        (tmp_path / name).write_bytes(content)

        with pytest.raises(KeystoreError, match="keys are damaged: ") as damaged:
            store.load()

    assert "not a" not in str(damaged.value)


def test_certificate_of_another_key_is_refused(tmp_path: Path, keys: KeySet) -> None:
    """A root certificate that is not the root key's is damage."""
    other = generate_keys("kms.example", kms_machine(), at=AT)

    with open_keystore(tmp_path) as store:
        store.create(keys, INFO)
        (tmp_path / "root-ca.crt").write_text(other.root_ca_pem)
        with pytest.raises(KeystoreError, match="its public key is not that of the private key beside it"):
            store.load()

    with pytest.raises(KeyMalformedError, match="its public key is not that of the private key beside it"):
        replace(keys, temp_ca=replace(keys.temp_ca, key_pem=other.temp_ca.key_pem))


def test_certificates_are_replaced_where_they_changed(tmp_path: Path, keys: KeySet) -> None:
    """At a start only what was issued anew is written; no key is touched."""
    with open_keystore(tmp_path) as store:
        store.create(keys, INFO)
        before = {path.name: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.iterdir()}
        store.replace_certificates(reissue_rpc_certificate(keys, kms_machine(), at=AT))

    after = {path.name: (path.read_bytes(), path.stat().st_ino) for path in tmp_path.iterdir()}
    assert {name for name in after if after[name] != before[name]} == {"rpc.crt"}
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_optional_files_may_be_absent(tmp_path: Path, keys: KeySet) -> None:
    """Keys that came by onboarding have no bootstrap info, and perhaps no domain."""
    with open_keystore(tmp_path) as store:
        store.create(keys, INFO)
        (tmp_path / "bootstrap-info.json").unlink()
        (tmp_path / "rpc-domain").unlink()

        assert (store.exists(), store.bootstrap_info(), store.load()) == (True, None, replace(keys, domain=""))


def test_secrets_do_not_show(keys: KeySet) -> None:
    """Keys can be printed without giving anything away."""
    assert "PRIVATE" not in repr(keys)
    assert root_keys(keys.roots).ca.hex() not in repr(keys)


def test_failed_write_can_be_repeated(tmp_path: Path, keys: KeySet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk leaves no keys behind, and does not stand in the way of the next attempt."""
    with open_keystore(tmp_path) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _disk_full)
            with pytest.raises(KeystoreError, match="keys not written: No space left on device"):
                store.create(keys, INFO)
        assert store.exists() is False

        store.create(keys, INFO)
        assert store.load() == keys


def _disk_full(_descriptor: int) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("info", [INFO, None], ids=["bootstrap", "onboarding"])
def test_keys_survive_a_crash_or_never_were(tmp_path: Path, keys: KeySet, info: str | None) -> None:
    """The process is killed at each of its file operations in turn; the next one finds all keys, or none at all."""
    files = FILES if info else FILES - {"bootstrap-info.json"}
    found = []
    for operation in range(1, 300):
        folder = tmp_path / str(operation)
        survived = _run_and_die(lambda folder=folder: _create(folder, keys, info), at=operation)  # type: ignore[misc]
        with open_keystore(folder) as store:
            found.append(store.exists())
            assert not store.exists() or store.load() == keys
            assert {path.name for path in folder.iterdir()} in (files, set())
        if survived:
            break

    # It did run to its end at last; and once the keys existed, they existed for good.
    assert survived
    assert len(found) > len(files) * 5
    assert found == sorted(found)
    assert (found[0], found[-1]) == (False, True)


def test_recovery_survives_a_crash_too(tmp_path: Path, keys: KeySet) -> None:
    """A store whose keys exist but are not all in their places is opened by a process that is killed at each step."""
    whole, half = tmp_path / "whole", tmp_path / "half"
    _create(whole, keys, INFO)
    (half / ".bootstrap.ready").mkdir(parents=True)
    for path in whole.iterdir():
        shutil.copy(path, half / ".bootstrap.ready" if path.name > "root-k" else half)

    for operation in range(1, 100):
        folder = tmp_path / str(operation)
        shutil.copytree(half, folder)
        survived = _run_and_die(lambda folder=folder: _open(folder), at=operation)  # type: ignore[misc]
        with open_keystore(folder) as store:
            assert (store.exists(), store.load()) == (True, keys)
        if survived:
            break
    assert survived
    assert operation > 5


def _open(folder: Path) -> None:
    with open_keystore(folder):
        pass


def test_everything_is_synced_before_it_counts(tmp_path: Path, keys: KeySet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file and its folder are on the disk before the renaming that makes them the keys."""
    synced: list[str] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real(descriptor)

    with open_keystore(tmp_path) as store:
        monkeypatch.setattr(os, "fsync", note)
        store.create(keys, INFO)

    # While they are written, files have names such as `.root-ca.key.0123456789abcdef`.
    last_file = max(at for at, name in enumerate(synced) if name not in (".bootstrap.new", tmp_path.name))
    assert {name[1:-17] for name in synced[: last_file + 1] if name not in (".bootstrap.new", tmp_path.name)} == FILES
    assert synced[last_file + 1 :] == [".bootstrap.new", tmp_path.name, tmp_path.name, tmp_path.name]


def _create(folder: Path, keys: KeySet, info: str | None) -> None:
    with open_keystore(folder) as store:
        store.create(keys, info)


def _run_and_die(act: Callable[[], None], *, at: int) -> bool:
    """Run *act* in a process that is killed before its file operation number *at*; whether it came to its end."""
    child = os.fork()
    if child == 0:
        _die_at(at)
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _die_at(operation: int) -> None:
    """Arrange that this process dies, without any clean-up, before the file operation of that number.

    Writing out what was written counts as one.
    """
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == operation:
            os._exit(9)

    def audit(event: str, _arguments: tuple[object, ...]) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "shutil.rmtree"):
            step()

    def sync(descriptor: int, real: Callable[[int], None] = os.fsync) -> None:
        step()
        real(descriptor)

    os.fsync = sync
    sys.addaudithook(audit)
