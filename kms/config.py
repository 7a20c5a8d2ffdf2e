"""Settings: `kms.toml` in upstream's spelling (kms.md 10.1), read once, never changed while running.

Every setting is documented in docs/settings-kms.md, with who can change it and what they gain if malicious. Keys of
upstream's file are taken, from 0.5.7 on. Those that have no effect here are said at the start; those that would weaken
the service are refused, and so is everything unknown.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BeforeValidator, Field, SecretStr, ValidationError, field_validator, model_validator

from dstack.attestation.tcb import TcbStatus
from dstack.errors import ConfigError
from dstack.transport.listener import CONNECTIONS_OF_PEER, HANDSHAKE_SECONDS, MAX_CONNECTIONS
from kms.chain_settings import AuthApi
from kms.settings_form import (
    Duration,
    HttpUrl,
    Port,
    ReadPath,
    Section,
    config_error,
    one_or_several,
    set_without_effect,
    setting_fields,
    without_effect,
)

ReadStatus = Annotated[TcbStatus, Field(strict=False)]
# Upstream's names for two of them.
_LEVELS = {"warn": "warning", "trace": "debug"}
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    BeforeValidator(lambda level: _LEVELS.get(level, level) if isinstance(level, str) else level),
]
HostName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,253}$")]

_LIMIT = 1 << 20
_IMAGE_HASH = "{OS_IMAGE_HASH}"
_DATABASE_URL = re.compile(r"(sqlite|postgresql\+psycopg)://.*")
_ACPI_SOURCE = re.compile(r"from-log|own-qemu(:.+)?|captured:.+|helper:.+")
_THREADS = "threads and limits are fixed"
_TDX_ONLY = "only TDX is verified"


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

    collateral_dir: ReadPath | None = None
    pccs: Annotated[tuple[HttpUrl, ...], BeforeValidator(one_or_several), Field(strict=False, max_length=8)] = ()
    amd_kds: str = without_effect("", _TDX_ONLY)


class RootCa(Section):
    """`core.attestation.root_ca`: another root of trust than Intel's; those of other platforms do nothing."""

    tdx: ReadPath | None = None
    gcp_tpm: str = without_effect("", _TDX_ONLY)
    aws_nitro_enclave: str = without_effect("", _TDX_ONLY)
    aws_nitro_tpm: str = without_effect("", _TDX_ONLY)
    sev_snp_milan: str = without_effect("", _TDX_ONLY)
    sev_snp_genoa: str = without_effect("", _TDX_ONLY)
    sev_snp_turin: str = without_effect("", _TDX_ONLY)


class Attestation(Section):
    """`core.attestation`: how evidence is verified."""

    urls: Urls = Urls()
    root_ca: RootCa = RootCa()
    insecure_allow_external_trust_anchors: bool = False
    min_evaluation_number: Annotated[int, Field(ge=0)] = 0
    classic_extensions: bool = False

    @model_validator(mode="after")
    def _root_is_meant(self) -> Self:
        named = next((name for name, path in self.root_ca if path not in ("", None)), None)
        if named is not None and not self.insecure_allow_external_trust_anchors:
            raise ValueError(f"root_ca.{named} needs insecure_allow_external_trust_anchors = true")
        return self


class Image(Section):
    """`core.image`: OS images are always verified; an unverified image hash is only a claim."""

    verify: Literal[True] = True
    cache_dir: ReadPath = Path("/usr/share/dstack/images")
    download_url: HttpUrl | None = None
    download_timeout: Duration = timedelta(minutes=2)
    acpi_tables: str = ""

    @field_validator("acpi_tables")
    @classmethod
    def _is_a_source(cls, source: str) -> str:
        if source and not _ACPI_SOURCE.fullmatch(source):
            raise ValueError("want own-qemu, own-qemu:PROGRAM, captured:PATH, helper:PROGRAM or from-log")
        return source

    @field_validator("download_url")
    @classmethod
    def _names_the_image(cls, url: str | None) -> str | None:
        if url is not None and _IMAGE_HASH not in url:
            raise ValueError(f"want {_IMAGE_HASH} in it")
        return url


class Onboard(Section):
    """`core.onboard`: the first start."""

    enabled: bool = True
    auto_bootstrap_domain: str = ""
    quote_enabled: Literal[True] = without_effect(True, "keys are never made or released without a quote")
    address: str = "127.0.0.1"
    port: Port = 8000
    names: Annotated[tuple[HostName, ...], Field(strict=False, max_length=8)] = ()


class Metrics(Section):
    """`core.metrics`: `GET /metrics`."""

    enabled: bool = True


class Admin(Section):
    """`core.admin`: the admin service."""

    enabled: bool = False
    address: str = "127.0.0.1"
    port: Port = 8001
    auth_token: SecretStr = SecretStr("")
    htpasswd_file: ReadPath | None = None
    insecure_no_auth: Literal[False] = False

    @field_validator("htpasswd_file", mode="before")
    @classmethod
    def _empty_is_none(cls, path: object) -> object:
        return None if path == "" else path


class Decisions(Section):
    """`core.decisions`: the signed log of decisions."""

    database_url: SecretStr | None = None
    retention: Duration = timedelta(days=400)

    @field_validator("database_url")
    @classmethod
    def _is_known(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not _DATABASE_URL.fullmatch(url.get_secret_value()):
            raise ValueError("want sqlite:///PATH or postgresql+psycopg://...")
        return url

    @field_validator("retention")
    @classmethod
    def _is_days(cls, retention: timedelta) -> timedelta:
        if retention < timedelta(days=1):
            raise ValueError("want at least 1d")
        return retention


class Limits(Section):
    """`core.limits`: how often strangers may ask, and what they may hold."""

    requests_per_second: Annotated[float, Field(gt=0, le=100_000, strict=False)] = 500.0
    requests_per_second_of_peer: Annotated[float, Field(gt=0, le=100_000, strict=False)] = 50.0
    connections_of_peer: Annotated[int, Field(ge=1, le=MAX_CONNECTIONS)] = CONNECTIONS_OF_PEER
    handshake: Duration = timedelta(seconds=HANDSHAKE_SECONDS)

    @field_validator("handshake")
    @classmethod
    def _can_be_done(cls, handshake: timedelta) -> timedelta:
        if not timedelta(seconds=1) <= handshake <= timedelta(minutes=1):
            raise ValueError("want 1s to 1m")
        return handshake


class Core(Section):
    """`core`: everything about keys and trust."""

    cert_dir: ReadPath = Path("/etc/kms/certs")
    subject_postfix: str = without_effect(".dstack", "it has none upstream either")
    agent_socket: ReadPath = Path("/var/run/dstack.sock")
    site_name: str = ""
    pccs_url: HttpUrl | None = None
    admin_token_hash: Annotated[str, Field(pattern="^([0-9a-fA-F]{64})?$")] = ""
    enforce_self_authorization: Literal[True] = True
    attest_rpc_cert: Literal[True] = True
    sev_snp_key_release: Literal[False] = False
    aws_nitro_tpm_key_release: Literal[False] = False
    accepted_tcb_statuses: Annotated[frozenset[ReadStatus], Field(strict=False, min_length=1)] = frozenset(
        {TcbStatus.UP_TO_DATE}
    )
    accepted_tcb_statuses_until: AwareDatetime | None = None
    attestation: Attestation = Attestation()
    image: Image = Image()
    auth_api: AuthApi
    onboard: Onboard = Onboard()
    metrics: Metrics = Metrics()
    admin: Admin = Admin()
    decisions: Decisions = Decisions()
    limits: Limits = Limits()

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

    @model_validator(mode="after")
    def _has_collateral(self) -> Self:
        urls = self.attestation.urls
        if self.pccs_url and urls.pccs and (self.pccs_url,) != urls.pccs:
            raise ValueError("want pccs_url or attestation.urls.pccs, got two that differ")
        if not (urls.collateral_dir or self.pccs):
            raise ValueError("attestation.urls: want collateral_dir or pccs, got neither")
        return self

    @property
    def pccs(self) -> tuple[str, ...]:
        """Where collateral is fetched, in either spelling."""
        return self.attestation.urls.pccs or ((self.pccs_url,) if self.pccs_url else ())

    @property
    def collateral_dir(self) -> Path:
        """Where collateral is kept; beside the keys' folder unless said otherwise."""
        return self.attestation.urls.collateral_dir or self.cert_dir.parent / "collateral"

    @property
    def database_url(self) -> str:
        """Where decisions are kept; beside the keys unless said otherwise."""
        if self.decisions.database_url is None:
            return f"sqlite:///{self.cert_dir / 'decisions.sqlite3'}"
        return self.decisions.database_url.get_secret_value()


class Settings(Section):
    """The whole file."""

    log_level: LogLevel = "info"
    workers: int = without_effect(8, _THREADS)
    max_blocking: int = without_effect(64, _THREADS)
    keep_alive: int = without_effect(10, _THREADS)
    ident: str = without_effect("DStack KMS", "no server header is sent")
    temp_dir: ReadPath = without_effect(Path("/tmp"), "nothing is written to temporary files")  # noqa: S108
    rpc: Rpc = Rpc()
    core: Core

    @model_validator(mode="before")
    @classmethod
    def _default_table(cls, file: Any) -> Any:
        """Upstream writes what stands at the top here into a table `default`."""
        if not isinstance(file, dict) or not isinstance(file.get("default"), dict):
            return file
        rest = {name: value for name, value in file.items() if name != "default"}
        if twice := sorted(set(rest) & set(file["default"])):
            raise ValueError(f"{twice[0]}: want it once, got it in default and at the top")
        return {**file["default"], **rest}

    @model_validator(mode="after")
    def _tls_files_are_ours(self) -> Self:
        places = {"key": (self.rpc.tls.key, "rpc.key"), "certs": (self.rpc.tls.certs, "rpc.crt")}
        places["mutual.ca_certs"] = (self.rpc.tls.mutual.ca_certs, "tmp-ca.crt")
        for setting, (path, name) in places.items():
            if path is not None and path != self.core.cert_dir / name:
                raise ValueError(f"rpc.tls.{setting}: want {self.core.cert_dir / name}, or nothing")
        return self

    def notices(self) -> tuple[str, ...]:
        """What whoever starts this should know: settings without effect, and what is weaker than it could be."""
        said = list(set_without_effect(self))
        if not self.core.image.acpi_tables:
            said.append("core.image.acpi_tables is unset: no machine gets anything, this one included")
        if self.core.image.acpi_tables == "from-log":
            said.append("ACPI tables are not verified: machines get keys on what only their own log says (from-log)")
        chain = self.core.auth_api.chain if self.core.auth_api.type == "chain" else None
        if chain is not None:
            if chain.block_tag != "finalized":
                said.append(f"NOT PRODUCTION: decisions rest on {chain.block_tag} blocks of a development chain")
            if len(chain.endpoints) == 1:
                said.append("one chain endpoint is believed; set core.auth_api.chain.rpc_urls to three or more")
            said += [f"chain endpoint {url}: whoever is in between can lie" for url in chain.unprotected_endpoints]
        return tuple(said)


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
        raise config_error(exc, Settings) from exc


def setting_names() -> Iterator[str]:
    """Every setting there is, dotted, as it is written in the file."""
    return (name for name, _ in setting_fields(Settings))
