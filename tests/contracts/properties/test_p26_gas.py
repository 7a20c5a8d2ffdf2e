"""P26: gas goals: propose one version <= 200k, execute <= 120k, `isAppAllowed` through KmsAuth <= 60k."""

from __future__ import annotations

import pytest

from tests.governed_world import DEVICE, GRANTED, GovernedWorld, Kind

# As long as the address of a content in IPFS is.
CID = "ipfs://bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi"


@pytest.mark.parametrize("first", [True, False], ids=["first version", "next version"])
def test_p26_one_version_stays_below_its_goals(governed: GovernedWorld, first: bool) -> None:
    """To propose it, to execute it, and to ask for it; on one OS image, no hash with a zero byte, a full address."""
    governed.grant(governed.image(), governed.on_app(Kind.DEVICE, DEVICE))
    if not first:
        governed.grant(governed.version(1))
    number, new = (1, b"\xc0" * 32) if first else (2, b"\xc2" * 32)
    ending = {} if first else {"supersedes": 1, "sunset": governed.now + 30 * 86400}
    content = governed.content([governed.version(number, compose_hash=new, **ending)], uri=CID)
    proposed = governed.send(governed.owner, governed.operator, "propose", content)
    ready_at = governed.now + 172_800
    identity = governed.operator.functions.proposalIds(0, 100).call()[-1]
    executed = governed.send(governed.stranger, governed.operator, "execute", identity, content, at=ready_at)
    asked = {
        "to": governed.kms.address,
        "data": governed.kms.encode_abi("isAppAllowed", args=[governed.boot(compose_hash=new)]),
    }
    question = governed.w3.eth.estimate_gas(asked)  # type: ignore[arg-type]

    assert governed.asked(compose_hash=new) == GRANTED
    costs = {"propose": proposed["gasUsed"], "execute": executed["gasUsed"], "isAppAllowed": question}
    goals = {"propose": 200_000, "execute": 120_000, "isAppAllowed": 60_000}
    assert {name: cost for name, cost in costs.items() if cost > goals[name]} == {}
