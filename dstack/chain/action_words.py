"""Actions in sentences: what a signer must understand before signing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from dstack.chain.action_data import (
    AppVersion,
    DelayChange,
    EpochChange,
    Genesis,
    KmsInfo,
    Meaning,
    SunsetChange,
    Switch,
    parse_action_data,
)
from dstack.chain.operator import Action, Kind
from dstack.values import Digest32

_GRANTS = {
    Kind.COMPOSE_HASH: "compose hash {value} of app {target} may get keys, on every allowed OS image",
    Kind.DEVICE: "app {target} may run on device {value}",
    Kind.ANY_DEVICE: "app {target} may run on every device",
    Kind.OUTDATED_TCB: "app {target} may run on machines of any TCB status before {value}",
    Kind.OS_IMAGE: "OS image {value} may run, under every app and KMS",
    Kind.KMS_AGGREGATED_MR: "a KMS of measurement {value} may have the root keys",
    Kind.KMS_DEVICE: "a KMS may run on device {value}",
    Kind.GATEWAY_APP_ID: "apps trust gateway {value}",
    Kind.APP_IMPLEMENTATION: "new apps run the code at {value}",
    Kind.GUARDIAN: "{value} may become guardian, if it accepts within 14 days",
    Kind.FORCED_GUARDIAN: "{value} may become guardian, if it accepts within 14 days; the guardian cannot cancel this",
    Kind.OWNER: "{value} may become owner, if it accepts within 14 days",
    Kind.APP: "the freeze of app {value} ends",
    Kind.FREEZE_RENEWAL: "app {value} gets no keys for 7 days",
    Kind.IMPLEMENTATION_UPGRADE: "contract {target} runs the code at {value}: every rule it keeps may change",
    Kind.FREEZE_FOR_GOOD: "nothing more can ever be granted to app {target}",
}
_DENIALS = {
    Kind.COMPOSE_HASH: "compose hash {value} of app {target} gets no more keys, in whatever version",
    Kind.DEVICE: "app {target} gets no more keys on device {value}",
    Kind.ANY_DEVICE: "app {target} gets keys on listed devices only",
    Kind.OUTDATED_TCB: "app {target} gets keys on machines of TCB status UpToDate only",
    Kind.OS_IMAGE: "OS image {value} gets no more keys, under any app or KMS",
    Kind.KMS_AGGREGATED_MR: "a KMS of measurement {value} gets no more root keys; one that has them keeps them",
    Kind.KMS_DEVICE: "a KMS on device {value} gets no more root keys",
    Kind.CONTRACT_UPGRADES: "the code of contract {target} can never change again",
    Kind.APP: "app {value} gets no keys for 7 days",
}


def grant_sentence(action: Action) -> str:
    """What is so once *action* was executed.

    Raises:
        InputError: Its data has not the form that its kind wants.
    """
    meaning = parse_action_data(action.kind, action.data)
    if isinstance(meaning, AppVersion):
        return _version_sentence(action, meaning)
    if isinstance(meaning, SunsetChange):
        return f"version {meaning.number} of app {action.target} ends {_later(meaning)}"
    if isinstance(meaning, DelayChange):
        wait = timedelta(seconds=meaning.seconds)
        return f"proposals of class {meaning.delay_class.name.lower()} wait {show_duration(wait)}"
    if isinstance(meaning, KmsInfo):
        return f"KmsAuth {action.target} publishes KMS {meaning.k256_pubkey.hex()}, CA {meaning.ca_pubkey.hex()}"
    if isinstance(meaning, EpochChange):
        rest = show_duration(timedelta(seconds=meaning.window))
        return f"the KMS gives keys of epoch {meaning.epoch}, and those of epoch {meaning.epoch - 1} for {rest} more"
    if isinstance(meaning, Genesis):
        return (
            f"the secure file of app {action.target} begins with fingerprint {meaning.fingerprint.hex()}, for good "
            f"(evidence {meaning.evidence.hex()})"
        )
    return _filled(_GRANTS, action, meaning)


def denial_sentence(action: Action) -> str:
    """What is so once *action* was denied.

    Raises:
        InputError: Its data has not the form that its kind wants.
    """
    meaning = parse_action_data(action.kind, action.data)
    if isinstance(meaning, SunsetChange):
        ends = "now" if meaning.at is None else f"at {show_time(meaning.at)}, or now if that is past"
        return f"version {meaning.number} of app {action.target} ends {ends}"
    return _filled(_DENIALS, action, meaning)


def proposal_sentence(actions: Sequence[Action], *, ready_at: datetime) -> str:
    """A whole proposal in one sentence."""
    return f"from {show_time(ready_at)} on: " + "; ".join(map(grant_sentence, actions))


def show_time(at: datetime) -> str:
    """A time as it is shown everywhere here: to the minute, in UTC; with seconds where there are any."""
    return f"{at:%Y-%m-%d %H:%M:%S} UTC" if at.second else f"{at:%Y-%m-%d %H:%M} UTC"


def show_duration(duration: timedelta) -> str:
    """A duration in days and hours."""
    days, seconds = divmod(int(duration.total_seconds()), 86400)
    hours, minutes = divmod(seconds // 60, 60)
    parts = [f"{days} days"] * (days > 0) + [f"{hours} hours"] * (hours > 0) + [f"{minutes} minutes"] * (minutes > 0)
    return " ".join(parts) or f"{seconds} seconds"


def _version_sentence(action: Action, version: AppVersion) -> str:
    images = ", ".join(image.hex() for image in version.os_image_hashes)
    what = "a rollback, " if version.is_rollback else ""
    sentence = (
        f"version {version.number} of app {action.target} may get keys "
        f"({what}compose hash {version.compose_hash.hex()}, OS image {images})"
    )
    if version.sunset is None:
        return sentence
    return f"{sentence}; version {version.supersedes} ends {show_time(version.sunset)}"


def _later(change: SunsetChange) -> str:
    return "never" if change.at is None else f"only at {show_time(change.at)}"


def _filled(templates: dict[Kind, str], action: Action, meaning: Meaning) -> str:
    template = templates.get(action.kind)
    if template is None:
        return f"{action.kind.name} of {action.target}, which the contract refuses"
    return template.format(target=action.target, value=shown(meaning))


def shown(meaning: Meaning) -> str:
    """The value of an action that has one: a hash, a time or an address."""
    if isinstance(meaning, Digest32):
        return meaning.hex()
    if isinstance(meaning, datetime):
        return show_time(meaning)
    return "" if isinstance(meaning, Switch) else str(meaning)
