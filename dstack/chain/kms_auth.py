"""What `KmsAuth` says: whether an app may have its keys, whether a KMS may have the root keys."""

from __future__ import annotations

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_utils.crypto import keccak

from dstack.chain.client import CallRevertedError, ChainClient, parse_address, printable
from dstack.errors import ChainUnavailableError, ConfigError
from dstack.policy.boot_info import BootInfo
from dstack.policy.decision import BlockRef, Decision, Rule, decide

BOOT_INFO_TYPE = "(address,bytes32,address,bytes32,bytes32,bytes32,bytes32,string,string[])"
# ERC-165 id of IAppAuth: the selector of isAppAllowed.
APP_AUTH_ID = bytes.fromhex("1e079198")


class KmsAuthReader:
    """Asks one KmsAuth. Each answer rests on one block, which it names; nothing is kept between two questions."""

    def __init__(self, client: ChainClient, address: str) -> None:
        """Take the settings; nothing is asked yet.

        Raises:
            ConfigError: *address* is not an address.
        """
        self._client = client
        self.address = parse_address(address, what="KmsAuth")

    @property
    def chain_id(self) -> int:
        """The chain that the endpoint says it is on.

        Raises:
            ChainUnavailableError: It could not be asked.
        """
        return self._client.chain_id

    def check(self, *, chain_id: int | None = None) -> BlockRef:
        """Establish that the settings lead to a KmsAuth; for the start of a program.

        Args:
            chain_id: The chain wanted; None for any.

        Returns:
            The block in whose state it is one.

        Raises:
            ConfigError: It is another chain, or no contract that answers to IAppAuth.
            ChainUnavailableError: It could not be asked.
        """
        if chain_id is not None and self.chain_id != chain_id:
            raise ConfigError(f"chain id: want {chain_id}, got {self.chain_id}")
        block = self._client.block()
        if not self._client.code(self.address, block):
            raise ConfigError(f"KmsAuth: {self._missing(block)}")
        try:
            question = _call("supportsInterface(bytes4)", ["bytes4"], [APP_AUTH_ID])
            (supported,) = decode(["bool"], self._client.call(self.address, question, block))
        except (CallRevertedError, DecodingError):
            supported = False
        if not supported:
            raise ConfigError(f"KmsAuth: the contract at {self.address} does not answer to IAppAuth")
        return block

    def authorize_app(self, boot: BootInfo) -> Decision:
        """Ask whether the machine *boot* may have its app's keys.

        Raises:
            ChainUnavailableError: It could not be asked; neither yes nor no.
        """
        return self._authorize("isAppAllowed", boot)

    def authorize_kms(self, boot: BootInfo) -> Decision:
        """Ask whether the machine *boot* may have the root keys.

        Raises:
            ChainUnavailableError: It could not be asked; neither yes nor no.
        """
        return self._authorize("isKmsAllowed", boot)

    def gateway_app_id(self) -> str:
        """The gateway that apps are told to trust; empty when none was named.

        Raises:
            ChainUnavailableError: It could not be asked.
        """
        block = self._client.block()
        try:
            answer = self._client.call(self.address, _call("gatewayAppId()", [], []), block)
            (text,) = decode(["bytes"], answer)
        except (CallRevertedError, DecodingError) as exc:
            raise ChainUnavailableError(f"KmsAuth: {self._no_answer(block)}") from exc
        return printable(text.decode("utf-8", "replace"))

    def _authorize(self, function: str, boot: BootInfo) -> Decision:
        block = self._client.block()
        question = _call(f"{function}({BOOT_INFO_TYPE})", [BOOT_INFO_TYPE], [boot.abi_tuple()])
        try:
            answer = self._client.call(self.address, question, block)
            # The text may come from an app's own contract: taken as bytes, because it need not be UTF-8.
            is_allowed, reason = decode(["bool", "bytes"], answer)
        except CallRevertedError:
            return decide(False, f"{function} reverted", block, _seen(boot))
        except DecodingError as exc:
            raise ChainUnavailableError(f"KmsAuth: {self._no_answer(block)}") from exc
        return decide(is_allowed, printable(reason.decode("utf-8", "replace")), block, _seen(boot))

    def _no_answer(self, block: BlockRef) -> str:
        if not self._client.code(self.address, block):
            return self._missing(block)
        return f"the contract at {self.address} does not answer as one"

    def _missing(self, block: BlockRef) -> str:
        return f"no contract at {self.address} in {self._client.block_tag} block {block.number}"


def _call(signature: str, types: list[str], values: list[object]) -> bytes:
    return keccak(text=signature)[:4] + encode(types, values)


def _seen(boot: BootInfo) -> dict[Rule, str]:
    app = "0x" + boot.app_id.hex()
    return {
        Rule.TCB_STATUS: boot.tcb_status,
        Rule.OS_IMAGE: boot.os_image_hash.hex(),
        Rule.AGGREGATED_MR: boot.mr_aggregated.hex(),
        Rule.KMS_DEVICE: boot.device_id.hex(),
        Rule.APP_REGISTERED: app,
        Rule.APP_FROZEN: app,
        Rule.APP_DEPLOYED: app,
        Rule.COMPOSE_HASH: boot.compose_hash.hex(),
        Rule.DEVICE: boot.device_id.hex(),
        Rule.APP_CONTRACT: app,
    }
