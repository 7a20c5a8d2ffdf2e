"""What a replicator asks of the chain, over several endpoints."""

from __future__ import annotations

from contextlib import closing

from eth_abi.abi import encode

from dstack.chain.bindings import encode_call
from dstack.chain.endpoints import Endpoints
from dstack.chain.workload import WorkloadReader
from dstack.policy import Granted
from tests.rpc_nodes import TARGET, Node, block_at, running
from tests.unit.chain.conftest import BOOT

GENESIS_OF = encode_call("UpgradeOperator", "genesisOf", "0x" + "11" * 20)[:4]


def allows(data: bytes, _number: int) -> bytes:
    """Contracts that allow everything."""
    if data[:4] == GENESIS_OF:
        return encode(["bytes32", "bytes32", "uint64", "uint48"], [b"\x01" * 32, bytes(32), 0, 0])
    return encode(["bool", "string"], [True, ""])


def endless(data: bytes, number: int) -> bytes:
    """The same, with a text longer than any memory in newer blocks."""
    return encode(["uint256"] * 3, [0, 64, 1 << 255]) if number > 100 else allows(data, number)


def test_a_newer_answer_out_of_form_does_not_count() -> None:
    """One endpoint that says nonsense of a newer block changes nothing."""
    nodes = (Node(say=allows), Node(say=allows), Node(head=103, say=endless))
    with running(*nodes), closing(Endpoints([node.url for node in nodes])) as endpoints:
        reader = WorkloadReader(endpoints, operator=TARGET, kms_auth=TARGET)

        assert reader.judge(BOOT).decision == Granted(block_at(100))
