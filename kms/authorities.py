"""Who decides, made from the settings: the contracts themselves, or an auth server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Protocol

from dstack.chain.endpoints import Endpoints
from dstack.chain.facts import Facts
from dstack.chain.kms_auth import KmsAuthReader
from dstack.errors import ConfigError
from dstack.policy import BlockRef
from kms.authorization import ChainAuthority
from kms.chain_settings import AuthApi, Chain
from kms.webhook import WebhookAuthority


class Authority(ChainAuthority, Protocol):
    """Decides, and knows what is published besides decisions."""

    def check(self, *, chain_id: int | None = None) -> BlockRef:
        """Establish at the start that the settings lead somewhere.

        Raises:
            ConfigError: They do not.
            ChainUnavailableError: It could not be asked.
        """
        ...

    def recent_facts(self) -> Facts | None:
        """What was last read, without asking anybody."""
        ...


@contextmanager
def opened_authority(settings: AuthApi) -> Iterator[Authority]:
    """The authority that the settings name; nobody is asked yet. Its connections are closed at the end.

    Raises:
        ConfigError: The settings name none.
    """
    with ExitStack() as stack:
        if settings.type == "chain" and settings.chain is not None:
            endpoints = stack.enter_context(closing(chain_endpoints(settings.chain)))
            yield stack.enter_context(closing(KmsAuthReader(endpoints, settings.chain.kms_contract)))
        elif settings.type == "webhook" and settings.webhook is not None:
            yield stack.enter_context(closing(WebhookAuthority(settings.webhook.url)))
        else:
            raise ConfigError(f"core.auth_api.{settings.type}: want it, got none")


def chain_endpoints(chain: Chain) -> Endpoints:
    """The endpoints that must agree."""
    return Endpoints(
        chain.endpoints,
        block_tag=chain.block_tag,
        agreement=chain.agreement,
        chain_id=chain.chain_id,
        max_age=chain.age_limit,
        head_seconds=chain.head_seconds,
    )
