"""Step 7: an old node hands its secure file to a new one. No KMS, only the chain between them."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, replace

import httpx

from dstack.attestation.evidence import serialise_evidence
from dstack.attestation.report_data import report_data
from dstack.chain.action_data import Genesis
from dstack.chain.operator import Proposal
from dstack.devnet.evidence import appraised
from dstack.devnet.governance import Governance
from dstack.devnet.http import HttpAnswer, call
from dstack.devnet.replicators import Node, bootstrap, start_replicator, write_settings
from dstack.devnet.transcript import demand
from dstack.devnet.world import Machine, World, boot_answer
from dstack.keys.sealing import seal
from dstack.keys.sealing_stream import StreamCipher, StreamShape
from dstack.measurement.compose import app_compose_from_docker_compose, compose_hash
from dstack.policy import boot_info
from dstack.transport.agent import AgentClient
from dstack.values import AppId, ComposeHash, Digest32
from replicator.answers import Answer, parse_answer, serialise_answer
from replicator.custody import Receipt, content_digest, fingerprint_of
from replicator.documents import Party, parse_request

_TRIES = 5
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class HandoverPlan:
    """Two versions of an app that keeps a secure file: the old node runs one, the new node the next."""

    app_id: AppId
    old: bytes
    new: bytes

    @property
    def old_hash(self) -> ComposeHash:
        """What the owners allow first."""
        return compose_hash(self.old)

    @property
    def new_hash(self) -> ComposeHash:
        """What they allow later."""
        return compose_hash(self.new)


def plan_handover(docker_compose: bytes, app_id: AppId) -> HandoverPlan:
    """Two versions of the reader's compose file, one comment apart; neither needs a KMS."""
    new = docker_compose.rstrip(b"\n") + b"\n# version 2\n"
    return HandoverPlan(
        app_id,
        *(app_compose_from_docker_compose(raw, name="handover", key_provider="none") for raw in (docker_compose, new)),
    )


def hand_over(world: World, governance: Governance, plan: HandoverPlan, pending: Proposal) -> None:
    """Refused while *pending* waits, then handed over; a stranger's answer is refused in between."""
    say = world.say
    machines = tuple(
        Machine(name, app_compose, app_id=plan.app_id) for name, app_compose in (("old", plan.old), ("new", plan.new))
    )
    booting = [machine.start(world) for machine in (*machines, stranger_machine(plan))]
    demand(all(boot_answer(program).get("ready") is True for program in booting), "a machine did not boot")
    old, new = (start_node(world, governance, machine) for machine in machines)
    say.did(f"old node {old.url} holds the secure file; new node {new.url} runs version 2 of the app")

    request = call(f"{new.url}/requestKey", {})
    demand(request.ok, f"the new node made no request: {request.text[:300]}")
    say.keep("handover/request.json", json.dumps(request.body, indent=2) + "\n")
    refused = call(f"{old.url}/onboard", request.text)
    _must_refuse(refused, "COMPOSE_HASH", "the old node answered a node that the chain does not allow")
    say.refused("a node whose configuration still waits", by="the old node", **_words(refused))

    recording = governance.propose_genesis(plan.app_id, genesis_of(old), world)
    governance.execute_when_ready(pending, world)
    governance.execute(recording)
    say.did("the chain records the genesis of the secure file; no other one counts for this app from now on")
    # The chain's clock has gone on by 48 hours: what was asked before has expired.
    request, answer = _ask_in_the_new_state(old, new)
    demand(answer.ok, f"the old node refused an allowed node: {answer.text[:300]}")
    line = answer.content.partition(b"\n")[0]
    say.keep("handover/answer.json", json.dumps(json.loads(line), indent=2) + "\n")
    say.did("the old node verified the new node's quote, asked the chain, and sealed the secure file to its key")

    forged = call(f"{new.url}/receiveKey", strangers_answer(world, plan, request.text, line))
    _must_refuse(forged, "COMPOSE_HASH", "the new node took a stranger's answer")
    say.refused("a stranger's sealed answer to the same request", by="the new node", **_words(forged))
    received = call(f"{new.url}/receiveKey", answer.content)
    demand(received.ok, f"the new node refused the answer: {received.text[:300]}")
    _compare(world, old, new)


def genesis_of(node: Node) -> Genesis:
    """What the first node says for the owners to record."""
    (path,) = (node.folder / "receipts").glob("*.genesis.json")
    kept = json.loads(path.read_text())
    return Genesis(Digest32.from_hex(kept["receipt"]["fingerprint"]), Digest32.from_hex(kept["hash"]))


def start_node(world: World, governance: Governance, machine: Machine) -> Node:
    """A replicator on *machine*; the old one makes the secure file first."""
    node = write_settings(world, governance, machine)
    if machine.name == "old":
        bootstrap(world, node)
    return start_replicator(world, node)


def stranger_machine(plan: HandoverPlan) -> Machine:
    """A genuine machine with an allowed image, whose app nobody allowed."""
    return Machine("stranger", plan.new.replace(b'"handover"', b'"stranger"', 1), app_id=plan.app_id)


def strangers_answer(world: World, plan: HandoverPlan, request: str, genuine: bytes) -> bytes:
    """A well-formed answer by a stranger that saw the genuine one, and seals a secret of its own to the same key."""
    public_key = parse_request(request.encode()).request.public_key
    agent = AgentClient(stranger_machine(plan).socket(world))
    stranger = Party.of(boot_info(appraised(world, agent.evidence(report_data("app-data", b"who am I")))))
    secret, key, answer = b"a secret that the stranger knows", b"\x01" * 32, parse_answer(genuine)
    terms = replace(
        answer.receipt.terms,
        sender=stranger,
        size=len(secret),
        fingerprint=fingerprint_of(content_digest(secret)),
    )
    sealed_key = seal(public_key, key, terms.seal_info())
    receipt = Receipt(terms, Digest32(hashlib.sha256(sealed_key).digest()))
    evidence = serialise_evidence(agent.evidence(receipt.report_data()))
    line = serialise_answer(Answer(sealed_key, receipt, answer.custody, evidence))
    return line.encode() + b"\n" + StreamCipher(key, StreamShape(len(secret)), terms.seal_info()).seal(0, secret)


def _ask_in_the_new_state(old: Node, new: Node) -> tuple[HttpAnswer, HttpAnswer]:
    """A new request and the answer to it; nodes look for a new block once a second."""
    for _ in range(_TRIES):
        request = call(f"{new.url}/requestKey", {})
        answer = call(f"{old.url}/onboard", request.text)
        if answer.ok or answer.status not in (httpx.codes.FORBIDDEN, httpx.codes.CONFLICT):
            break
        time.sleep(_PAUSE_SECONDS)
    return request, answer


def _must_refuse(answer: HttpAnswer, rule: str, otherwise: str) -> None:
    demand(not answer.ok, otherwise)
    demand(answer.body.get("rule") == rule, f"want a refusal by {rule}, got {answer.text[:300]}")


def _words(answer: HttpAnswer) -> dict[str, str]:
    return {"rule": str(answer.body.get("rule")), "reason": str(answer.body.get("error"))}


def _compare(world: World, old: Node, new: Node) -> None:
    say = world.say
    demand(old.secure_file.read_bytes() == new.secure_file.read_bytes(), "the two nodes hold different secure files")
    say.proved("both nodes hold the same secure file; it travelled sealed")
    for node in (old, new):
        receipts = node.receipts()
        demand(len(receipts) == 1, f"want one receipt at the {node.machine.name} node, got {len(receipts)}")
        document = json.loads(receipts[0].read_text())
        say.keep(f"handover/receipt-{document['role']}.json", json.dumps(document, indent=2) + "\n")
    say.proved("both sides keep a receipt, bound by the old node's quote")
