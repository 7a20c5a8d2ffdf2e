"""What actions would change, compared with what is allowed now, and who would be cut off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from dstack.chain.action_data import AppVersion, SunsetChange, parse_action_data
from dstack.chain.action_words import show_time, shown
from dstack.chain.allowed import Allowed, AllowedApp
from dstack.chain.operator import Action, Kind
from dstack.values import ComposeHash, DeviceId, Digest32, OsImageHash


@dataclass(frozen=True, slots=True)
class Effects:
    """Lines for people.

    Attributes:
        diff: `+` what becomes allowed, `-` what ends, `=` what is so already, `!` what may surprise.
        cut_off: Who gets no more keys, and from when on; those who have keys keep them until they restart.
    """

    diff: tuple[str, ...]
    cut_off: tuple[str, ...]


def effects_of_grants(actions: Sequence[Action], allowed: Allowed, *, at: datetime) -> Effects:
    """What executing *actions* at *at* would change."""
    diff: list[str] = []
    cut_off: list[str] = []
    for action in actions:
        meaning = parse_action_data(action.kind, action.data)
        app = allowed.apps.get(action.target)
        if isinstance(meaning, AppVersion) and app is not None:
            diff += _version_diff(app, meaning, allowed, actions)
            cut_off += _superseded(app, meaning, at)
        elif isinstance(meaning, SunsetChange) and app is not None:
            diff += _sunset_diff(app, meaning)
        elif action.kind is Kind.FREEZE_RENEWAL:
            diff.append(f"- app {shown(meaning)} for 7 days")
            cut_off.append(f"app {shown(meaning)}: whoever starts within 7 days of execution gets no keys")
        elif action.kind is Kind.IMPLEMENTATION_UPGRADE:
            diff.append(f"! contract {action.target}: new code at {shown(meaning)}; read it, it may change every rule")
        else:
            sign = "=" if _is_allowed(action, allowed, at) else "+"
            diff.append(f"{sign} {_name(action)}")
    return Effects(tuple(diff), tuple(cut_off))


def effects_of_denials(actions: Sequence[Action], allowed: Allowed, *, at: datetime) -> Effects:
    """What denying *actions* at *at* changes."""
    diff: list[str] = []
    cut_off: list[str] = []
    for action in actions:
        sign = "-" if _is_allowed(action, allowed, at) or action.kind in _ALWAYS else "="
        diff.append(f"{sign} {_name(action)}")
        cut_off += _denied(action, allowed, at)
    return Effects(tuple(diff), tuple(cut_off))


_ALWAYS = (Kind.SUNSET, Kind.APP, Kind.CONTRACT_UPGRADES)


def _version_diff(app: AllowedApp, version: AppVersion, allowed: Allowed, actions: Sequence[Action]) -> Iterator[str]:
    word = "rollback" if version.is_rollback else "version"
    for image in version.os_image_hashes:
        what = f"{word} {version.number}: compose hash {version.compose_hash.hex()} on {image.hex()}"
        yield f"+ app {app.address}: {what}"
        granted = (action.data for action in actions if action.kind is Kind.OS_IMAGE)
        if image not in allowed.os_images and bytes(image) not in granted:
            yield f"! OS image {image.hex()} is not allowed by KmsAuth, so this runs on it nowhere"
    old = app.versions.get(version.supersedes)
    if old is not None and version.sunset is not None:
        ends_at = version.sunset if old.ends_at is None else min(old.ends_at, version.sunset)
        yield f"- app {app.address}: version {version.supersedes} ends {_end(old.ends_at)} -> {_end(ends_at)}"


def _superseded(app: AllowedApp, version: AppVersion, at: datetime) -> Iterator[str]:
    old = app.versions.get(version.supersedes)
    if old is None or version.sunset is None or old.is_over(at):
        return
    ends_at = version.sunset if old.ends_at is None else min(old.ends_at, version.sunset)
    compose_hash = old.version.compose_hash
    others = [known.version for known in app.live_versions(ends_at) if known is not old]
    stays = compose_hash in app.compose_hashes or compose_hash in [one.compose_hash for one in (*others, version)]
    if not stays:
        yield (
            f"app {app.address}: whoever still runs version {version.supersedes} (compose hash {compose_hash.hex()}) "
            f"gets no keys from {show_time(max(ends_at, at))} on"
        )


def _sunset_diff(app: AllowedApp, change: SunsetChange) -> Iterator[str]:
    known = app.versions.get(change.number)
    now = "unknown" if known is None else _end(known.ends_at)
    yield f"+ app {app.address}: version {change.number} ends {now} -> {_end(change.at)}"


def _denied(action: Action, allowed: Allowed, at: datetime) -> Iterator[str]:
    meaning = parse_action_data(action.kind, action.data)
    app = allowed.apps.get(action.target)
    if action.kind is Kind.COMPOSE_HASH and app is not None and app.is_allowed(ComposeHash(action.data), at):
        numbers = [
            str(known.version.number) for known in app.live_versions(at) if known.version.compose_hash == action.data
        ]
        also = f", also as version {', '.join(numbers)}" if numbers else ""
        yield f"app {app.address}: whoever runs compose hash {action.data.hex()}{also}"
    elif isinstance(meaning, SunsetChange) and app is not None:
        yield f"app {app.address}: whoever runs version {meaning.number} when it ends"
    elif action.kind is Kind.OS_IMAGE and action.data in allowed.os_images:
        yield f"every KMS and every app on OS image {action.data.hex()}: {', '.join(allowed.apps) or 'no app yet'}"
    elif action.kind is Kind.APP:
        yield f"app {shown(meaning)}: whoever starts within 7 days"
    elif action.kind is Kind.ANY_DEVICE and app is not None and app.any_device:
        yield f"app {app.address}: whoever runs on a device that is not listed ({len(app.devices)} are)"
    elif action.kind is Kind.DEVICE and app is not None and action.data in app.devices and not app.any_device:
        yield f"app {app.address}: whoever runs on device {action.data.hex()}"
    elif action.kind is Kind.OUTDATED_TCB and app is not None:
        yield f"app {app.address}: whoever runs on a machine whose TCB status is not UpToDate"
    elif action.kind in (Kind.KMS_AGGREGATED_MR, Kind.KMS_DEVICE):
        yield "a KMS that starts anew; one that has the root keys keeps them"


def _is_allowed(action: Action, allowed: Allowed, at: datetime) -> bool:
    app = allowed.apps.get(action.target)
    data = action.data
    answers = {
        Kind.OS_IMAGE: lambda: OsImageHash(data) in allowed.os_images,
        Kind.KMS_AGGREGATED_MR: lambda: Digest32(data) in allowed.kms_measurements,
        Kind.KMS_DEVICE: lambda: DeviceId(data) in allowed.kms_devices,
        Kind.COMPOSE_HASH: lambda: app is not None and app.is_allowed(ComposeHash(data), at),
        Kind.DEVICE: lambda: app is not None and DeviceId(data) in app.devices,
        Kind.ANY_DEVICE: lambda: app is not None and app.any_device,
        Kind.OUTDATED_TCB: lambda: app is not None and _tolerates(app, at),
        Kind.FREEZE_FOR_GOOD: lambda: app is not None and app.frozen_for_good,
    }
    answer = answers.get(action.kind)
    return answer is not None and answer()


def _tolerates(app: AllowedApp, at: datetime) -> bool:
    return not app.require_tcb_up_to_date or (app.outdated_tcb_until is not None and at < app.outdated_tcb_until)


def _name(action: Action) -> str:
    meaning = parse_action_data(action.kind, action.data)
    what = action.kind.name.lower().replace("_", " ")
    if isinstance(meaning, Digest32):
        return f"{what} {meaning.hex()} in {action.target}"
    if isinstance(meaning, datetime):
        return f"{what} in {action.target} until {show_time(meaning)}"
    if isinstance(meaning, SunsetChange):
        return f"{what} of version {meaning.number} of {action.target}: {_end(meaning.at)}"
    return f"{what} {meaning} in {action.target}" if isinstance(meaning, str) else f"{what} in {action.target}"


def _end(at: datetime | None) -> str:
    return "never" if at is None else show_time(at)
