"""Root keys at rest: the files of upstream's `cert_dir` (kms.md 10.2). Nothing else touches them.

Creation is all or nothing. The files are written and synced in `.bootstrap.new`; its renaming to `.bootstrap.ready`
is the moment they exist; then they move to their places. Opening the store finishes a move that a crash interrupted,
and removes files that were never complete.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dstack.errors import InputError, KeystoreError
from dstack.keys.pem import load_certificate, load_private_key, require_key_of
from dstack.transport.private_file import create_private, replace_private
from dstack.transport.tls import TlsIdentity
from kms.roots import ROOT_CA_KEY, ROOT_K256_KEY, Roots

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ROOT_CA_CERT = "root-ca.crt"
TEMP_CA_CERT, TEMP_CA_KEY = "tmp-ca.crt", "tmp-ca.key"
RPC_CERT, RPC_KEY = "rpc.crt", "rpc.key"
RPC_DOMAIN = "rpc-domain"
BOOTSTRAP_INFO = "bootstrap-info.json"

_REQUIRED = (ROOT_CA_CERT, ROOT_CA_KEY, TEMP_CA_CERT, TEMP_CA_KEY, RPC_CERT, RPC_KEY, ROOT_K256_KEY)
_FILES = (*_REQUIRED, RPC_DOMAIN, BOOTSTRAP_INFO)
_SECRETS = (ROOT_CA_KEY, ROOT_K256_KEY, TEMP_CA_KEY, RPC_KEY)
_INCOMPLETE, _READY = ".bootstrap.new", ".bootstrap.ready"
_FILE_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class KeySet:
    """What makes a KMS: its root keys, the certificates over them, and the name it is reached under.

    Certificates and keys are PEM; secrets do not show in `repr`. `domain` is empty where no file names it.
    """

    roots: Roots
    root_ca_pem: str
    temp_ca: TlsIdentity
    rpc: TlsIdentity
    domain: str

    def __post_init__(self) -> None:
        self.roots.require_certificate(self.root_ca_pem)
        for identity in (self.temp_ca, self.rpc):
            require_key_of(load_certificate(identity.certificate_pem), load_private_key(identity.key_pem))


@dataclass(frozen=True, slots=True)
class Keystore:
    """One directory of keys, held by this process alone. Made by `open_keystore`."""

    directory: Path
    descriptor: int = field(repr=False)

    def exists(self) -> bool:
        """Whether there are keys: all of them, or none.

        Raises:
            KeystoreError: Some are there and some are missing.
        """
        present = self._present()
        missing = [name for name in _REQUIRED if name not in present]
        if present and missing:
            raise KeystoreError(f"{self.directory}: want all key files or none, missing {', '.join(missing)}")
        return not missing

    def create(self, keys: KeySet, bootstrap_info: str | None) -> None:
        """Write everything a first start makes, completely or not at all.

        Args:
            keys: The new keys.
            bootstrap_info: What the answer to Bootstrap said, as JSON; None where the keys came from another KMS.

        Raises:
            KeystoreError: There is a file already, or the directory cannot be written.
        """
        try:
            self._settle()
            if self._present():
                raise KeystoreError("KMS has already been bootstrapped")
            info = {} if bootstrap_info is None else {BOOTSTRAP_INFO: bootstrap_info.encode()}
            self._write(_contents(keys) | info)
        except OSError as exc:
            raise KeystoreError(f"{self.directory}: keys not written: {exc.strerror or exc}") from exc

    def load(self) -> KeySet:
        """Read the keys.

        Raises:
            KeystoreError: A file is missing or damaged, or a certificate does not belong to its key.
        """
        try:
            return KeySet(
                roots=Roots.from_files({name: self._read(name) for name in (ROOT_CA_KEY, ROOT_K256_KEY)}),
                root_ca_pem=self._read(ROOT_CA_CERT).decode("ascii"),
                temp_ca=self._read_identity(TEMP_CA_CERT, TEMP_CA_KEY),
                rpc=self._read_identity(RPC_CERT, RPC_KEY),
                domain=self._read(RPC_DOMAIN).decode("ascii").strip() if RPC_DOMAIN in self._present() else "",
            )
        except (InputError, UnicodeDecodeError) as exc:
            raise KeystoreError(f"{self.directory}: keys are damaged: {exc}") from exc

    def bootstrap_info(self) -> bytes | None:
        """What the answer to Bootstrap said; None where keys came otherwise, or the file cannot be read."""
        try:
            return self._read(BOOTSTRAP_INFO)
        except KeystoreError:
            return None

    def replace_certificates(self, keys: KeySet) -> None:
        """Put newly issued certificates in the place of the last, for keys that stay; what is unchanged is not written.

        Each certificate fits its key, so a crash between two of them leaves a store that is whole.

        Raises:
            KeystoreError: One cannot be written; the last one is then still there.
        """
        certificates = {
            ROOT_CA_CERT: keys.root_ca_pem,
            TEMP_CA_CERT: keys.temp_ca.certificate_pem,
            RPC_CERT: keys.rpc.certificate_pem,
        }
        for name, pem in certificates.items():
            if self._read(name) == pem.encode():
                continue
            try:
                replace_private(self.directory / name, pem.encode())
            except OSError as exc:
                raise KeystoreError(f"{self.directory}: {name} not written: {exc.strerror or exc}") from exc

    def close_to_others(self) -> tuple[str, ...]:
        """Take from everybody else what they may do with the secret files: dstack up to 0.5.11 left them readable.

        Returns:
            The names of those that were open.

        Raises:
            KeystoreError: One cannot be changed.
        """
        names = [name for name in _SECRETS if self._mode(name) & 0o077]
        for name in names:
            try:
                (self.directory / name).chmod(0o600)
            except OSError as exc:
                raise KeystoreError(f"{self.directory}: others can open {name}: {exc.strerror or exc}") from exc
        return tuple(names)

    def _mode(self, name: str) -> int:
        try:
            return stat.S_IMODE((self.directory / name).stat().st_mode)
        except OSError as exc:
            raise KeystoreError(f"{self.directory}: {name} cannot be read: {exc.strerror or exc}") from exc

    def _present(self) -> frozenset[str]:
        return frozenset(name for name in _FILES if os.path.lexists(self.directory / name))

    def _read(self, name: str) -> bytes:
        try:
            with (self.directory / name).open("rb") as stream:
                return stream.read(_FILE_LIMIT)
        except OSError as exc:
            raise KeystoreError(f"{self.directory}: {name} cannot be read: {exc.strerror or exc}") from exc

    def _read_identity(self, certificate: str, key: str) -> TlsIdentity:
        return TlsIdentity(self._read(certificate).decode("ascii"), self._read(key).decode("ascii"))

    def _write(self, contents: Mapping[str, bytes]) -> None:
        incomplete = self.directory / _INCOMPLETE
        incomplete.mkdir(mode=0o700)
        for name, content in contents.items():
            create_private(incomplete / name, content)
        incomplete.rename(self.directory / _READY)
        os.fsync(self.descriptor)
        self._settle()

    def _settle(self) -> None:
        """Bring what a crash left behind to one of the two states there are: no keys, or all of them."""
        incomplete, ready = self.directory / _INCOMPLETE, self.directory / _READY
        if incomplete.exists():
            shutil.rmtree(incomplete)
        if ready.exists():
            for path in sorted(ready.iterdir()):
                path.replace(self.directory / path.name)
            os.fsync(self.descriptor)
            ready.rmdir()
        os.fsync(self.descriptor)


@contextmanager
def open_keystore(directory: Path) -> Iterator[Keystore]:
    """Open the store in *directory*, made if it is missing, for the length of a `with` block.

    Raises:
        KeystoreError: Another process holds it, or it cannot be used.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise KeystoreError(f"{directory}: cannot be used: {exc.strerror or exc}") from exc
    try:
        yield _locked(Keystore(directory, descriptor))
    finally:
        os.close(descriptor)


def _locked(keystore: Keystore) -> Keystore:
    try:
        fcntl.flock(keystore.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        keystore._settle()
    except BlockingIOError as exc:
        raise KeystoreError(f"{keystore.directory}: another process holds these keys") from exc
    except OSError as exc:
        raise KeystoreError(f"{keystore.directory}: cannot be used: {exc.strerror or exc}") from exc
    return keystore


def _contents(keys: KeySet) -> dict[str, bytes]:
    return {
        **keys.roots.files(),
        ROOT_CA_CERT: keys.root_ca_pem.encode(),
        TEMP_CA_CERT: keys.temp_ca.certificate_pem.encode(),
        TEMP_CA_KEY: keys.temp_ca.key_pem.encode(),
        RPC_CERT: keys.rpc.certificate_pem.encode(),
        RPC_KEY: keys.rpc.key_pem.encode(),
        RPC_DOMAIN: keys.domain.encode(),
    }
