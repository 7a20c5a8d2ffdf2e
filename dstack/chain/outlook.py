"""What will be so without anybody acting, and who could make what so, how soon."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from eth_typing import ChecksumAddress

from dstack.chain.action_data import AppVersion, SunsetChange, parse_action_data
from dstack.chain.action_words import grant_sentence, show_duration, show_time
from dstack.chain.allowed import AllowedApp
from dstack.chain.governed import Governed, KnownProposal
from dstack.chain.operator import Action, Kind
from dstack.policy.timelock import FORCED_DELAY, Entry, Stage, next_freeze_at


def upcoming(governed: Governed) -> Iterator[Entry]:
    """Every known moment at which something begins to be possible, or ends; in no order, past ones included."""
    for known in governed.pending():
        yield from _of_pending(known)
    for known in governed.proposals:
        closes_at = known.timetable.rollback_closes_at()
        if known.proposal.content.rollback and closes_at and known.timetable.rolled_back_at is None:
            yield Entry(closes_at, f"proposal 0x{known.id.hex()}: its rollback can no longer be run")
    for app in governed.allowed.apps.values():
        yield from _of_app(app, governed.at)
    epoch, served_until = governed.allowed.key_epoch, governed.allowed.previous_epoch_until
    if served_until is not None:
        yield Entry(served_until, f"keys of epoch {epoch - 1} are no longer given, only those of epoch {epoch}")
    for one in governed.nominations:
        yield Entry(one.expires_at, f"{one.account} can no longer accept to be {one.role.lower()}")


def allowed_lines(governed: Governed, at: datetime) -> list[str]:
    """What is allowed at *at* if nobody acts until then, and what could be by then."""
    lines = [f"OS image {image.hex()}" for image in sorted(governed.allowed.os_images)]
    for app in governed.allowed.apps.values():
        frozen = app.frozen_until is not None and at < app.frozen_until
        note = " (FROZEN)" if frozen else ""
        for known in app.live_versions(at):
            version = known.version
            lines.append(
                f"app {app.address}: version {version.number}, compose hash {version.compose_hash.hex()}{note}"
            )
        lines += [
            f"app {app.address}: compose hash {one.hex()}, any OS image{note}" for one in sorted(app.compose_hashes)
        ]
    for waiting in governed.pending():
        if waiting.timetable.stage(at) is Stage.READY:
            name = f"0x{waiting.id.hex()[:8]}..."
            lines += [f"if somebody executes {name}: {grant_sentence(action)}" for action in waiting.actions]
    return lines


@dataclass(frozen=True, slots=True)
class Power:
    """Who can do what, how soon."""

    who: str
    what: str
    how_soon: str


def powers(governed: Governed) -> tuple[Power, ...]:
    """Every power there is over the governed contracts; whoever is not listed has none."""
    wait = {name: show_duration(timedelta(seconds=seconds)) for name, seconds in governed.delays.items()}
    owner, guardian = f"owner {governed.owner}", f"guardian {governed.guardian}"
    either = "owner or guardian"
    listed = [
        Power(
            owner,
            "propose hashes, devices, versions, OS images, KMS, longer sunsets, the end of a freeze, a genesis",
            wait["policy"],
        ),
        Power(owner, "propose another owner or guardian, who must accept within 14 days", wait["roles"]),
        Power(owner, "propose another guardian so that the guardian cannot cancel it", _forced(governed)),
        Power(
            owner,
            "propose new contract code, code for new apps, the next key epoch, or to freeze an app for good",
            wait["upgrades"],
        ),
        Power(owner, "propose another delay, 48 hours or longer", "the delay that it changes"),
        Power(owner, "give up changes of a contract's code, for good", "at once"),
        Power(
            either, "cancel a proposal that is not executed; one that forces another guardian the owner only", "at once"
        ),
        Power(
            either, "take back a hash, device, OS image or KMS; require an up-to-date TCB; shorten a sunset", "at once"
        ),
        Power(either, "freeze one app for 7 days, again 7 days after its end", "at once"),
        Power("owner and guardian together", "run a rollback staged with a proposal, for 14 days after it", "at once"),
        Power("anybody", "execute a Ready proposal", "from its earliest time on, for 14 days"),
        Power("anybody", "put the digest of a handover's receipt on record", "at once"),
        Power("anybody", "make and register a new app; it has keys of its own and no power over others", "at once"),
        Power("nobody", "renounce, shorten a waiting proposal, edit one, call anything else, move money", "never"),
    ]
    listed.insert(6, Power(guardian, "nothing but what is listed for owner or guardian", "at once"))
    listed += [
        Power("anybody", f"execute 0x{known.id.hex()[:8]}...: {grant_sentence(action)}", _from(known, governed.at))
        for known in governed.pending()
        for action in known.actions
    ]
    listed += [
        Power(one.account, f"accept to be {one.role.lower()}", f"at once, until {show_time(one.expires_at)}")
        for one in governed.nominations
    ]
    for app in governed.allowed.apps.values():
        listed += _limits(app, governed.at)
    ungoverned = [app for app in governed.apps if app not in governed.allowed.apps]
    listed += [
        Power(f"the owner of app {app}", "everything about that app; it is not governed here", "unknown")
        for app in ungoverned
    ]
    return tuple(listed)


def _forced(governed: Governed) -> str:
    return show_duration(max(FORCED_DELAY, timedelta(seconds=governed.delays["roles"])))


def _of_pending(known: KnownProposal) -> Iterator[Entry]:
    name, ready_at = f"proposal 0x{known.id.hex()}", known.proposal.ready_at
    yield Entry(known.proposal.expires_at, f"{name} can no longer be executed")
    for action in known.actions:
        yield Entry(ready_at, f"{name} can be executed by anybody: {grant_sentence(action)}")
        meaning = parse_action_data(action.kind, action.data)
        if isinstance(meaning, AppVersion) and meaning.sunset is not None:
            yield Entry(
                meaning.sunset, f"version {meaning.supersedes} of app {action.target} ends, if {name} was executed"
            )


def _of_app(app: AllowedApp, at: datetime) -> Iterator[Entry]:
    for known in app.live_versions(at):
        if known.ends_at is not None:
            yield Entry(known.ends_at, f"version {known.version.number} of app {app.address} ends")
    if app.frozen_until is not None:
        yield Entry(app.frozen_until, f"the freeze of app {app.address} ends")
        yield Entry(next_freeze_at(app.frozen_until, at), f"app {app.address} can be frozen again at once")
    if app.outdated_tcb_until is not None:
        yield Entry(app.outdated_tcb_until, f"app {app.address} requires an up-to-date TCB again")


def _from(known: KnownProposal, at: datetime) -> str:
    ready_at = known.proposal.ready_at
    return "at once" if at >= ready_at else f"from {show_time(ready_at)} on"


def _limits(app: AllowedApp, at: datetime) -> Iterator[Power]:
    if app.frozen_for_good:
        yield Power("nobody", f"grant app {app.address} anything", "never")
    elif app.upgrades_disabled:
        yield Power("nobody", f"change the code of app {app.address}", "never")
    if app.frozen_until is not None and at < app.frozen_until:
        yield Power(
            "nobody", f"get keys for app {app.address}", f"before {show_time(app.frozen_until)}, or a proposal ends it"
        )


def stopped_by(denials: Sequence[Action], governed: Governed) -> list[str]:
    """The pending proposals that can no longer be executed once *denials* are made."""
    subjects = {_subject(action) for action in denials}
    return [
        f"proposal 0x{known.id.hex()} can no longer be executed"
        for known in governed.pending()
        if subjects & {_subject(action) for action in known.actions}
    ]


def _subject(action: Action) -> tuple[Kind, ChecksumAddress, bytes]:
    """What denials of an action share (`IUpgradeOperator.deniedAt`)."""
    meaning = parse_action_data(action.kind, action.data)
    if isinstance(meaning, AppVersion):
        return Kind.COMPOSE_HASH, action.target, bytes(meaning.compose_hash)
    if isinstance(meaning, SunsetChange):
        return action.kind, action.target, meaning.number.to_bytes(8, "big")
    return action.kind, action.target, b"" if action.kind is Kind.OUTDATED_TCB else action.data
