"""P18: the full state at any block can be rebuilt from events alone (tested by replay against storage)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from tests.governed_world import (
    DAY,
    DEVICE,
    KMS_MR,
    ON,
    ZERO_ADDRESS,
    Action,
    DelayClass,
    GovernedWorld,
    Kind,
    registers,
    word,
)


class Replay:
    """State of operator, KmsAuth and app, from their logs and the times of blocks, and nothing else."""

    def __init__(self, world: GovernedWorld, until: int) -> None:
        self.world = world
        self.until = until
        self.lists: dict[str, set[Any]] = defaultdict(set)
        self.single: dict[str, Any] = {
            "newestVersion": 0,
            "outdatedTcbToleratedUntil": 0,
            "frozenForGood": False,
            "kms.upgradesDisabled": False,
            "app.upgradesDisabled": False,
            "gatewayAppId": "",
            "kmsInfo": [b""] * 4,
            "keyEpoch": [0, 0, 0],
            "nominatedOwner": [ZERO_ADDRESS, 0],
            "nominatedGuardian": [ZERO_ADDRESS, 0],
        }
        self.delays = [0, 0, 0]
        self.proposals: dict[bytes, list[Any]] = {}
        self.end_set_at: dict[int, int] = {}
        self.times: dict[int, int] = {}
        self.contents: dict[bytes, Any] = {}
        self.agreed: dict[bytes, str] = {}
        self.denied: dict[tuple[int, str, bytes], int] = {}
        self.frozen: dict[str, int] = {}
        self.genesis: dict[str, list[Any]] = {}
        self.block = 0
        self.versions: dict[int, list[Any]] = {}
        self.pairs: dict[tuple[bytes, bytes], int] = {}
        self.register_sets: dict[tuple[bytes, Any], int] = {}
        self.removed_up_to: dict[bytes, int] = {}
        for name in ("operator", "kms", "app"):
            self._run(name)

    def _run(self, contract_name: str) -> None:
        contract = getattr(self.world, contract_name)
        logs = self.world.w3.eth.get_logs({"address": contract.address, "fromBlock": 0, "toBlock": self.until})  # type: ignore[typeddict-item]
        by_topic = {event().topic: event for event in contract.events}
        for log in logs:
            event = by_topic["0x" + log["topics"][0].hex().removeprefix("0x")]().process_log(log)
            self.block = number = log["blockNumber"]
            if number not in self.times:
                self.times[number] = int(self.world.w3.eth.get_block(number)["timestamp"])
            time = self.times[number]
            handler = getattr(self, f"on_{event['event']}", None)
            if handler is not None:
                handler(event["args"], time, contract_name)

    # The operator.

    def on_ProposalQueued(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        forced = any(each["kind"] == Kind.FORCED_GUARDIAN for each in e["content"]["actions"])
        self.proposals[e["id"]] = [e["nonce"], time, e["readyAt"], 0, False, False, forced]
        self.contents[e["id"]] = e["content"]

    def on_ProposalExecuted(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.proposals[e["id"]][3] = time
        self.lists["isAnnounced"] |= {each["target"] for each in self.contents[e["id"]]["actions"]}

    def on_ProposalCancelled(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.proposals[e["id"]][4] = True

    def on_ProposalRolledBack(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.proposals[e["id"]][5] = True
        self.lists["isAnnounced"] |= {each["target"] for each in self.contents[e["id"]]["rollback"]}

    def on_RollbackAgreed(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.agreed[e["id"]] = e["by"]

    def on_ActionDenied(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.denied[e["kind"], e["target"], e["subject"]] = time

    def on_Nominated(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        role = "nominatedOwner" if e["kind"] == Kind.OWNER else "nominatedGuardian"
        self.single[role] = [e["account"], e["expiresAt"]]

    def on_GuardianChanged(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        assert e["previous"] == self.single.get("guardian", ZERO_ADDRESS)
        self.single["guardian"], self.single["nominatedGuardian"] = e["current"], [ZERO_ADDRESS, 0]

    def on_GenesisRecorded(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.genesis[e["app"]] = [e["fingerprint"], e["evidence"], self.block, time]

    def on_DelayChanged(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        assert e["previous"] == self.delays[e["class"]]
        self.delays[e["class"]] = e["current"]

    # All three.

    def on_OwnershipTransferred(self, e: Any, time: int, name: str) -> None:  # noqa: N802
        self.single[f"{name}.owner"] = e["newOwner"]
        if name == "operator":
            self.single["nominatedOwner"] = [ZERO_ADDRESS, 0]

    def on_Upgraded(self, e: Any, time: int, name: str) -> None:  # noqa: N802
        self.single[f"{name}.implementation"] = e["implementation"]

    def on_UpgradesDisabled(self, e: Any, time: int, name: str) -> None:  # noqa: N802
        self.single[f"{name}.upgradesDisabled"] = True

    # KmsAuth.

    def on_AppRegistered(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.lists["registeredApps"].add(e["appId"])

    def on_AppDeployedViaFactory(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.lists["isFactoryMade"].add(e["appId"])

    def on_KmsAggregatedMrAdded(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.lists["kmsAllowedAggregatedMrs"].add(e["mrAggregated"])

    def on_KmsAggregatedMrRemoved(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.lists["kmsAllowedAggregatedMrs"].discard(e["mrAggregated"])

    def on_KmsDeviceAdded(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.lists["kmsAllowedDeviceIds"].add(e["deviceId"])

    def on_KmsDeviceRemoved(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.lists["kmsAllowedDeviceIds"].discard(e["deviceId"])

    def on_OsImageHashAdded(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.lists["allowedOsImages"].add(e["osImageHash"])

    def on_OsImageHashRemoved(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.lists["allowedOsImages"].discard(e["osImageHash"])

    def on_GatewayAppIdSet(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.single["gatewayAppId"] = e["gatewayAppId"]

    def on_AppImplementationSet(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.single["appImplementation"] = e["implementation"]

    def on_KmsInfoPublished(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.single["kmsInfo"] = list(e["info"].values())

    def on_KeyEpochBegan(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        assert e["previous"] == self.single["keyEpoch"][0]
        self.single["keyEpoch"] = [e["current"], e["previous"], e["previousServedUntil"]]

    def on_AppFrozen(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        assert e["previous"] == self.frozen.get(e["appId"], 0)
        self.frozen[e["appId"]] = e["until"]

    def on_AppUnfrozen(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        assert e["previous"] == self.frozen.get(e["appId"], 0)
        self.frozen[e["appId"]] = min(e["previous"], time)

    # The app.

    def on_ComposeHashAdded(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.lists["allowedComposeHashes"].add(e["composeHash"])

    def on_ComposeHashRemoved(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.lists["allowedComposeHashes"].discard(e["composeHash"])

    def on_VersionsRemoved(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.removed_up_to[e["composeHash"]] = e["newest"]

    def on_DeviceAdded(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.lists["allowedDeviceIds"].add(e["deviceId"])

    def on_DeviceRemoved(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.lists["allowedDeviceIds"].discard(e["deviceId"])

    def on_AllowAnyDeviceSet(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.single["allowAnyDevice"] = e["allowAny"]

    def on_RequireTcbUpToDateSet(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.single["requireTcbUpToDate"] = e["requireUpToDate"]

    def on_OutdatedTcbToleratedUntil(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.single["outdatedTcbToleratedUntil"] = e["until"]

    def on_AppFrozenForGood(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        self.single["frozenForGood"] = True

    def on_VersionAdded(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        version = e["version"]
        number = version["number"]
        self.versions[number] = [time, 0, self.single["newestVersion"], version["isRollback"]]
        self.single["newestVersion"] = number
        for image in version["osImageHashes"]:
            self.pairs[version["composeHash"], image] = number
        for each in version["registers"]:
            self.register_sets[version["composeHash"], tuple(each.values())] = number

    def on_VersionEndSet(self, e: Any, time: int, _: str) -> None:  # noqa: N802
        assert e["previous"] == self.versions[e["number"]][1]
        self.versions[e["number"]][1] = e["endsAt"]
        self.end_set_at[e["number"]] = time

    # What follows.

    def is_live(self, number: int, compose_hash: bytes, at: int) -> bool:
        """Whether that version allows it."""
        if number == 0 or number <= self.removed_up_to.get(compose_hash, 0):
            return False
        return self.versions[number][1] == 0 or at < self.versions[number][1]


LISTS = {
    "operator": ["isAnnounced"],
    "kms": ["registeredApps", "isFactoryMade", "kmsAllowedAggregatedMrs", "kmsAllowedDeviceIds", "allowedOsImages"],
    "app": ["allowedComposeHashes", "allowedDeviceIds"],
}
SINGLE = {
    "operator": ["guardian", "nominatedOwner", "nominatedGuardian", "operator.owner"],
    "kms": ["gatewayAppId", "appImplementation", "kmsInfo", "keyEpoch", "kms.upgradesDisabled", "kms.owner"],
    "app": [
        *("allowAnyDevice", "requireTcbUpToDate", "outdatedTcbToleratedUntil", "newestVersion", "frozenForGood"),
        *("app.upgradesDisabled", "app.owner"),
    ],
}
IMPLEMENTATION_SLOT = 0x360894A13BA1A3210667C828492DB98DCA3E2076CC3735A920A3CA505D382BBC


def compare(world: GovernedWorld, block: int) -> None:
    """Every getter, in the state of *block*, says what the events up to it say."""
    replay = Replay(world, block)
    at = int(world.w3.eth.get_block(block)["timestamp"])

    def ask(contract: str, function: str, *arguments: Any) -> Any:
        return getattr(world, contract).functions[function](*arguments).call(block_identifier=block)

    everything = {bytes([n]) * 32 for n in (1, 2, 3, 4, 5, 8, 0xDE, 0x3A)}
    addresses = {
        world.app.address,
        world.kms.address,
        world.operator.address,
        world.stranger,
        *replay.lists["registeredApps"],
    }
    for contract, names in LISTS.items():
        for name in names:
            asked = addresses if name in ("registeredApps", "isFactoryMade", "isAnnounced") else everything
            assert {each for each in asked if ask(contract, name, each)} == replay.lists[name], name
    for contract, names in SINGLE.items():
        for name in names:
            assert ask(contract, name.rpartition(".")[2]) == replay.single[name], name
    for name in ("kms", "app"):
        slot = world.w3.eth.get_storage_at(getattr(world, name).address, IMPLEMENTATION_SLOT, block)
        assert word(replay.single[f"{name}.implementation"]) == bytes(slot)
    assert list(ask("operator", "delays")) == replay.delays
    assert ask("operator", "proposalIds", 0, 100) == list(replay.proposals)
    for proposal, record in replay.proposals.items():
        assert list(ask("operator", "proposal", proposal)) == record
        assert ask("operator", "rollbackAgreedBy", proposal) == replay.agreed.get(proposal, ZERO_ADDRESS)
    for (kind, target, subject), time in replay.denied.items():
        data = ON if kind == Kind.OUTDATED_TCB else subject
        assert ask("operator", "deniedAt", Action(kind, target, data)) == time
    for app in addresses:
        assert ask("kms", "frozenUntil", app) == replay.frozen.get(app, 0)
        assert ask("operator", "genesisOf", app) == replay.genesis.get(app, [bytes(32), bytes(32), 0, 0])
    for number, version in replay.versions.items():
        assert list(ask("app", "versionRecord", number)) == version
        assert ask("app", "endSetAt", number) == replay.end_set_at.get(number, 0)
    assert ask("app", "versionNumbers", 0, 100) == sorted(replay.versions, reverse=True)
    for (compose_hash, image), number in replay.pairs.items():
        assert ask("app", "versionOf", compose_hash, image) == number
        want = compose_hash in replay.lists["allowedComposeHashes"] or replay.is_live(number, compose_hash, at)
        assert ask("app", "isConfigurationAllowed", compose_hash, image, at) == want
    for (compose_hash, measured), number in replay.register_sets.items():
        assert ask("app", "areRegistersAllowed", compose_hash, measured, at) == replay.is_live(number, compose_hash, at)


def live(world: GovernedWorld) -> None:
    """Everything that the three contracts can go through."""
    heirs = [world.chain.funded_account().address for _ in range(2)]
    back = [world.version(3, is_rollback=True, register_sets=[registers(1)])]
    world.grant(
        *(world.compose(bytes([n]) * 32) for n in (1, 2)),
        world.on_app(Kind.DEVICE, DEVICE),
        world.on_app(Kind.ANY_DEVICE, ON),
        world.on_app(Kind.OUTDATED_TCB, word(world.now + 40 * DAY)),
        *(world.image(bytes([n]) * 32) for n in (3, 5)),
        world.on_kms(Kind.KMS_AGGREGATED_MR, KMS_MR),
        world.on_kms(Kind.KMS_DEVICE, DEVICE),
        world.on_kms(Kind.GATEWAY_APP_ID, word(world.stranger)),
        world.version(1, register_sets=[registers(1), registers(2, b"\x09" * 48)], images=[b"\x05" * 32, b"\x03" * 32]),
    )
    sunset = world.now + 30 * DAY
    second = world.version(2, compose_hash=b"\x07" * 32, supersedes=1, sunset=sunset, register_sets=[registers(7)])
    done = world.grant(second, world.compose(b"\x04" * 32), rollback=back)
    world.deny(world.compose(b"\x01" * 32), world.image(b"\x03" * 32), world.freeze())
    world.deny(world.on_app(Kind.ANY_DEVICE, ON), world.on_app(Kind.OUTDATED_TCB, ON), by=world.owner)
    world.send(world.owner, world.operator, "agreeToRollback", done.id)
    world.send(world.guardian, world.operator, "rollBack", done.id, done.content)
    cancelled = world.propose(world.compose(b"\x08" * 32))
    world.send(world.guardian, world.operator, "cancel", cancelled.id)
    world.grant(
        world.freeze(),
        world.sunset(1, sunset + DAY),
        world.on_kms(Kind.APP_IMPLEMENTATION, word(world.kms_implementation)),
        world.on_app(Kind.IMPLEMENTATION_UPGRADE, word(world.deploy_ours("AppAuth").address)),
        world.delay(DelayClass.UPGRADES, 9 * DAY),
        world.delay(DelayClass.ROLES, 5 * DAY),
        world.on_self(Kind.OWNER, word(heirs[0])),
        world.on_self(Kind.GUARDIAN, word(heirs[1])),
        world.kms_info(),
        world.key_epoch(1),
        world.genesis(),
    )
    world.send(heirs[0], world.operator, "acceptOwnership")
    forced = world.propose(world.force_guardian(world.stranger), by=heirs[0])
    world.execute(forced, at=forced.ready_at)
    world.send(world.stranger, world.operator, "acceptGuardian")
    late = world.propose(world.freeze(Kind.FREEZE_RENEWAL), world.on_app(Kind.FREEZE_FOR_GOOD, ON), by=heirs[0])
    world.execute(late, at=late.ready_at)
    world.deny(world.compose(b"\x07" * 32), world.on_kms(Kind.CONTRACT_UPGRADES, ON), by=heirs[0])


def test_p18_a_whole_life_is_rebuilt_from_events(governed: GovernedWorld) -> None:
    """After everything that can happen, every getter says what a replay of the logs says."""
    live(governed)

    compare(governed, governed.w3.eth.block_number)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_p18_also_at_any_block_before(governed: GovernedWorld, share: float) -> None:
    """The state of an earlier block follows from the logs up to it."""
    first = governed.w3.eth.block_number
    live(governed)
    last = governed.w3.eth.block_number

    compare(governed, first + int((last - first) * share))


def test_p18_a_contract_adopted_is_owned(governed: GovernedWorld) -> None:
    """`ContractAdopted` is true: the operator is the owner afterwards."""
    app = governed.own_app(governed.owner)
    governed.send(governed.owner, app, "transferOwnership", governed.operator.address)

    receipt = governed.send(governed.owner, governed.operator, "adopt", app.address)

    (log,) = (log for log in receipt["logs"] if log["address"] == governed.operator.address)
    assert bytes(log["topics"][1]) == word(app.address)
    assert app.functions.owner().call() == governed.operator.address
