"""Settings: `kms.toml` in upstream's spelling (kms.md 10.1), read once, never changed while running.

Every setting is documented in docs/settings-kms.md, with who can change it and what they gain if malicious. What this
KMS does not do is refused rather than ignored: a setting without effect would mislead whoever wrote it.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dstack.attestation.tcb import TcbStatus
from dstack.errors import ConfigError
from dstack.transport.collateral_fetch import endpoint_url

Port = Annotated[int, Field(ge=0, le=65535)]
ReadPath = Annotated[Path, Field(strict=False)]
Status = Annotated[TcbStatus, Field(strict=False)]
ReadStatus = Annotated[TcbStatus, Field(strict=False)]

_LIMIT = 1 << 20
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")

# Upstream's settings that have no effect here, and why.
_REFUSED = {
    "workers": "threads and limits are fixed",
    "max_blocking": "threads and limits are fixed",
    "keep_alive": "threads and limits are fixed",
    "ident": "no server header is sent",
    "temp_dir": "nothing is written to temporary files",
    "core.subject_postfix": "it has no effect upstream either",
    "core.admin_token_hash": "there is no admin service",
    "core.admin": "there is no admin service",
    "core.metrics": "there are no metrics yet",
    "core.pccs_url": "its place is core.attestation.urls.pccs",
    "core.image.cache_dir": "images are judged by their measurement document; nothing is downloaded",
    "core.image.download_url": "images are judged by their measurement document; nothing is downloaded",
    "core.image.download_timeout": "images are judged by their measurement document; nothing is downloaded",
    "core.auth_api.webhook": "the contracts are asked directly: core.auth_api.chain",
    "core.auth_api.dev": "the contracts are asked directly: core.auth_api.chain",
    "core.onboard.quote_enabled": "keys are never made or released without a quote",
}


class Section(BaseModel):
    """A table of the file: nothing unknown in it, no conversions, no changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class MutualTls(Section):
    """`rpc.tls.mutual`: where upstream finds the temporary CA; here always beside the keys."""

    ca_certs: ReadPath | None = None
    mandatory: Literal[False] = False


class RpcTls(Section):
    """`rpc.tls`: where upstream finds the server's certificate; here always beside the keys."""

    key: ReadPath | None = None
    certs: ReadPath | None = None
    mutual: MutualTls = MutualTls()


class Rpc(Section):
    """`rpc`: where the TLS service listens."""

    address: str = "0.0.0.0"  # noqa: S104 - a KMS serves machines elsewhere
    port: Port = 8000
    tls: RpcTls = RpcTls()


class Urls(Section):
    """`core.attestation.urls`: where collateral comes from."""

    collateral_dir: ReadPath
    pccs: Annotated[tuple[str, ...], Field(strict=False, max_length=8)] = ()

    @field_validator("pccs", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("pccs")
    @classmethod
    def _are_endpoints(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(map(endpoint_url, urls))
        except ConfigError as exc:
            raise ValueError(str(exc)) from exc


class RootCa(Section):
    """`core.attestation.root_ca`: another root of trust than Intel's."""

    tdx: ReadPath | None = None


class Attestation(Section):
    """`core.attestation`: how evidence is verified."""

    urls: Urls
    root_ca: RootCa = RootCa()
    insecure_allow_external_trust_anchors: bool = False
    min_evaluation_number: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _root_is_meant(self) -> Self:
        if self.root_ca.tdx is not None and not self.insecure_allow_external_trust_anchors:
            raise ValueError("root_ca.tdx needs insecure_allow_external_trust_anchors = true")
        return self


class Image(Section):
    """`core.image`: OS images are always verified; an unverified image hash is only a claim."""

    verify: Literal[True] = True


class Chain(Section):
    """`core.auth_api.chain`: the contracts that decide."""

    rpc_url: str
    kms_contract: str
    chain_id: Annotated[int, Field(gt=0)] | None = None
    block_tag: Literal["finalized", "safe", "latest"] = "finalized"

    @field_validator("rpc_url")
    @classmethod
    def _is_url(cls, url: str) -> str:
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ValueError("want an http or https URL")
        return url

    @field_validator("kms_contract")
    @classmethod
    def _is_address(cls, address: str) -> str:
        if not _ADDRESS.fullmatch(address) or int(address, 16) == 0:
            raise ValueError("want 0x and 40 hexadecimal digits, not all zero")
        return address

    @property
    def shown_rpc_url(self) -> str:
        """Scheme and host only: the rest may be a credential."""
        parts = urlsplit(self.rpc_url)
        return f"{parts.scheme}://{parts.hostname}"


class AuthApi(Section):
    """`core.auth_api`: who decides. Only the chain may."""

    type: Literal["chain"] = "chain"
    chain: Chain


class Onboard(Section):
    """`core.onboard`: the first start."""

    enabled: bool = True
    auto_bootstrap_domain: str = ""
    address: str = "0.0.0.0"  # noqa: S104 - the operator is elsewhere
    port: Port = 8000


class Core(Section):
    """`core`: everything about keys and trust."""

    cert_dir: ReadPath = Path("/etc/kms/certs")
    agent_socket: ReadPath = Path("/var/run/dstack.sock")
    site_name: str = ""
    enforce_self_authorization: Literal[True] = True
    accepted_tcb_statuses: Annotated[frozenset[ReadStatus], Field(strict=False, min_length=1)] = frozenset(
        {TcbStatus.UP_TO_DATE}
    )
    accepted_tcb_statuses_until: AwareDatetime | None = None
    attestation: Attestation
    image: Image = Image()
    auth_api: AuthApi
    onboard: Onboard = Onboard()

    @field_validator("accepted_tcb_statuses")
    @classmethod
    def _never_revoked(cls, statuses: frozenset[TcbStatus]) -> frozenset[TcbStatus]:
        if TcbStatus.REVOKED in statuses:
            raise ValueError("Revoked cannot be accepted")
        return statuses

    @model_validator(mode="after")
    def _acceptance_ends(self) -> Self:
        if self.accepted_tcb_statuses != {TcbStatus.UP_TO_DATE} and self.accepted_tcb_statuses_until is None:
            raise ValueError(
                "accepted_tcb_statuses beside UpToDate need accepted_tcb_statuses_until, the time they end"
            )
        return self


class Settings(Section):
    """The whole file."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    rpc: Rpc = Rpc()
    core: Core

    @model_validator(mode="after")
    def _tls_files_are_ours(self) -> Self:
        places = {"key": (self.rpc.tls.key, "rpc.key"), "certs": (self.rpc.tls.certs, "rpc.crt")}
        places["mutual.ca_certs"] = (self.rpc.tls.mutual.ca_certs, "tmp-ca.crt")
        for setting, (path, name) in places.items():
            if path is not None and path != self.core.cert_dir / name:
                raise ValueError(f"rpc.tls.{setting}: want {self.core.cert_dir / name}, or nothing")
        return self


def load_settings(path: Path) -> Settings:
    """Read a settings file.

    Raises:
        ConfigError: It cannot be read, or a setting is unknown, missing or out of range; all of them are named.
    """
    try:
        with path.open("rb") as stream:
            return parse_settings(stream.read(_LIMIT).decode())
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read: {getattr(exc, 'strerror', None) or 'not UTF-8'}") from exc


def parse_settings(text: str) -> Settings:
    """Read settings from TOML.

    Raises:
        ConfigError: Not TOML, or a setting is unknown, missing or out of range; all of them are named.
    """
    try:
        return Settings.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"settings: want TOML: {exc}") from exc
    except ValidationError as exc:
        raise ConfigError("settings: " + "; ".join(_sentences(exc))) from exc


def setting_names(section: type[Section] = Settings, prefix: str = "") -> Iterator[str]:
    """Every setting there is, dotted, as it is written in the file."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from setting_names(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def _sentences(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_input=False, include_url=False):
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            yield _about_unknown(name)
        elif problem["type"] == "missing":
            yield f"{name}: want a value, got none"
        else:
            yield f"{name or 'file'}: {problem['msg'].removeprefix('Value error, ')}"


def _about_unknown(name: str) -> str:
    if name in _REFUSED:
        return f"{name}: not a setting of this KMS: {_REFUSED[name]}"
    close = difflib.get_close_matches(name, list(setting_names()), n=1)
    return f"{name}: unknown setting" + (f" (did you mean {close[0]}?)" if close else "")
