"""Where a key comes from: a file, an environment variable or a prompt; never the command line, which others can see."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.exceptions import ValidationError

from dstack.cli.files import read_input
from dstack.errors import InputError, KeyMalformedError
from dstack.values import Digest32, bytes_from_hex

MAX_KEY_FILE = 64 * 1024
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def key_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say where the key comes from."""
    options = [
        click.option(
            "--key-file", metavar="FILE", help="The key: 64 hexadecimal digits, or an encrypted keystore (JSON)."
        ),
        click.option("--key-env", metavar="NAME", help="Environment variable that holds the key."),
        click.option("--passphrase-file", metavar="FILE", help="Of the keystore. Default: asked for."),
        click.option("--passphrase-env", metavar="NAME", help="Environment variable that holds the passphrase."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def load_key(
    *, key_file: str | None, key_env: str | None, passphrase_file: str | None, passphrase_env: str | None
) -> LocalAccount:
    """The key that the options name; asked for on the terminal where they name none.

    Raises:
        InputError: Both a file and a variable are named, nothing is named and there is no terminal, the file can be
            read by others, or holds no key.
    """
    if key_file is not None and key_env is not None:
        raise InputError("key: want --key-file or --key-env, got both")
    if key_file is not None:
        content = _private(key_file).strip()
        if content.startswith(b"{"):
            return _decrypted(content, _passphrase(passphrase_file, passphrase_env))
        return _account(content.decode("ascii", "replace"), key_file)
    if key_env is not None:
        return _account(_variable(key_env), key_env)
    return _account(_asked("Private key (64 hexadecimal digits, not shown)"), "key")


def _private(path: str) -> bytes:
    try:
        mode = Path(path).stat().st_mode
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    if mode & _OTHERS:
        raise InputError(f"{path}: want a file that only its owner may read (chmod 600), got mode {mode & 0o777:03o}")
    return read_input(path, limit=MAX_KEY_FILE)


def _passphrase(path: str | None, variable: str | None) -> str:
    if path is not None:
        return _private(path).decode("utf-8", "replace").rstrip("\r\n")
    return _variable(variable) if variable is not None else _asked("Passphrase of the keystore")


def _variable(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise InputError(f"environment variable {name}: want a value, got none")
    return value


def _asked(question: str) -> str:
    if not sys.stdin.isatty():
        raise InputError("key: want --key-file or --key-env; there is no terminal to ask at")
    return str(click.prompt(question, hide_input=True, err=True))


def _account(text: str, source: str) -> LocalAccount:
    try:
        account: LocalAccount = Account.from_key(bytes(Digest32(bytes_from_hex(text.strip(), what="key"))))
    except (InputError, ValidationError, ValueError) as exc:
        # Whatever the library says may quote the key.
        raise KeyMalformedError(f"{source}: want a private key of 64 hexadecimal digits") from exc
    return account


def _decrypted(keystore: bytes, passphrase: str) -> LocalAccount:
    try:
        account: LocalAccount = Account.from_key(Account.decrypt(keystore.decode(), passphrase))
    except (ValueError, KeyError, TypeError) as exc:
        raise KeyMalformedError("keystore: wrong passphrase, or not a keystore that can be read") from exc
    return account
