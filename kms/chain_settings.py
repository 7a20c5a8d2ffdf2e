"""`core.auth_api`: who decides."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from dstack.chain.agreement import needed_of
from dstack.chain.endpoints import MAX_ENDPOINTS
from dstack.chain.gathering import require_different_hosts, unprotected
from dstack.errors import ConfigError
from dstack.web.urls import shown_url
from kms.settings_form import Duration, HttpUrl, Section, TrustedUrl, without_effect

DEVELOPMENT_CHAINS = (1337, 31337)
"""Chain ids of anvil, hardhat and geth's development mode: nothing of value is there, and finality means nothing."""

MAX_BLOCK_AGE = timedelta(hours=1)
BLOCK_KEPT_FOR = timedelta(seconds=1)

_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")


class Chain(Section):
    """`core.auth_api.chain`: the contracts that decide."""

    rpc_url: HttpUrl | None = None
    rpc_urls: Annotated[tuple[HttpUrl, ...], Field(strict=False, max_length=MAX_ENDPOINTS)] = ()
    agreement: int | None = None
    kms_contract: str
    chain_id: Annotated[int, Field(gt=0)] | None = None
    block_tag: Literal["finalized", "safe", "latest"] = "finalized"
    max_block_age: Duration | None = None
    block_kept_for: Duration | None = None

    @field_validator("kms_contract")
    @classmethod
    def _is_address(cls, address: str) -> str:
        if not _ADDRESS.fullmatch(address) or int(address, 16) == 0:
            raise ValueError("want 0x and 40 hexadecimal digits, not all zero")
        return address

    @field_validator("block_kept_for")
    @classmethod
    def _is_short(cls, kept: timedelta | None) -> timedelta | None:
        if kept is not None and kept > BLOCK_KEPT_FOR:
            raise ValueError("want at most 1s: denials must show within two")
        return kept

    @model_validator(mode="after")
    def _can_agree(self) -> Self:
        if bool(self.rpc_url) == bool(self.rpc_urls):
            raise ValueError("want rpc_urls or rpc_url, got " + ("both" if self.rpc_url else "neither"))
        try:
            require_different_hosts(self.endpoints)
            needed_of(len(self.endpoints), self.agreement)
        except ConfigError as exc:
            raise ValueError(str(exc)) from exc
        return self

    @model_validator(mode="after")
    def _rests_on_final_blocks(self) -> Self:
        if self.block_tag != "finalized" and not self.is_development:
            chains = " or ".join(map(str, DEVELOPMENT_CHAINS))
            raise ValueError(f"block_tag: want finalized, except on a development chain (chain_id = {chains})")
        return self

    @property
    def endpoints(self) -> tuple[str, ...]:
        """All of them."""
        return self.rpc_urls or ((self.rpc_url,) if self.rpc_url else ())

    @property
    def is_development(self) -> bool:
        """Whether this is a chain where nothing is at stake."""
        return self.chain_id in DEVELOPMENT_CHAINS

    @property
    def age_limit(self) -> timedelta | None:
        """How old a block may be; a development chain makes blocks when somebody wants one, so it has no limit."""
        if self.max_block_age is None and self.is_development:
            return None
        return self.max_block_age or MAX_BLOCK_AGE

    @property
    def head_seconds(self) -> float:
        """For how long the agreed block is kept; not at all on a development chain, where nobody waits for a block."""
        if self.block_kept_for is None:
            return 0.0 if self.is_development else BLOCK_KEPT_FOR.total_seconds()
        return self.block_kept_for.total_seconds()

    @property
    def shown_rpc_url(self) -> str:
        """Scheme, host and port of the first endpoint."""
        return shown_url(self.endpoints[0])

    @property
    def unprotected_endpoints(self) -> tuple[str, ...]:
        """Endpoints elsewhere whose answers anybody in between can change, as they may be shown."""
        return unprotected(self.endpoints)


class Webhook(Section):
    """`core.auth_api.webhook`: an auth server that asks the chain, or reads a policy."""

    url: TrustedUrl


class Dev(Section):
    """`core.auth_api.dev`: upstream's mode in which everything is allowed."""

    gateway_app_id: str = without_effect("any", "there is no mode in which everything is allowed")


class AuthApi(Section):
    """`core.auth_api`: who decides."""

    type: Literal["chain", "webhook"] = "chain"
    chain: Chain | None = None
    webhook: Webhook | None = None
    dev: Dev = Dev()

    @field_validator("type", mode="before")
    @classmethod
    def _never_everything(cls, kind: object) -> object:
        if kind == "dev":
            raise ValueError("want chain or webhook: there is no mode in which everything is allowed")
        return kind

    @model_validator(mode="after")
    def _is_told(self) -> Self:
        if (self.chain if self.type == "chain" else self.webhook) is None:
            raise ValueError(f"type is {self.type}: want core.auth_api.{self.type}, got none")
        return self

    @property
    def kms_contract(self) -> str:
        """The contract that decides; empty where an auth server knows it."""
        return self.chain.kms_contract if self.type == "chain" and self.chain else ""

    @property
    def shown_rpc_url(self) -> str:
        """Scheme, host and port of the first chain endpoint; empty where an auth server knows it."""
        return self.chain.shown_rpc_url if self.type == "chain" and self.chain else ""
