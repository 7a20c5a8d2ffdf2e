"""What is allowed, rebuilt from events alone: the lists of KmsAuth, and each app's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from eth_typing import ChecksumAddress
from eth_utils.address import to_checksum_address

from dstack.chain.action_data import AppVersion, KmsInfo, RegisterSet
from dstack.chain.history import PastEvent
from dstack.policy.timelock import has_ended
from dstack.values import ComposeHash, DeviceId, Digest32, OsImageHash, Register


@dataclass(slots=True)
class KnownVersion:
    """A version that was added, and what became of it."""

    version: AppVersion
    ends_at: datetime | None = None
    removed: bool = False

    def is_over(self, at: datetime) -> bool:
        """Whether it is no longer allowed at *at*, if nobody acts until then."""
        return self.removed or has_ended(self.ends_at, at)


@dataclass(slots=True)
class AllowedApp:
    """One governed app.

    Attributes:
        compose_hashes: Allowed on any OS image, besides versions.
        versions: All there ever were, by number.
        holders: The version that answers for a compose hash on an OS image: the newest that lists the pair.
    """

    address: ChecksumAddress
    compose_hashes: set[ComposeHash] = field(default_factory=set)
    devices: set[DeviceId] = field(default_factory=set)
    versions: dict[int, KnownVersion] = field(default_factory=dict)
    holders: dict[tuple[ComposeHash, OsImageHash], int] = field(default_factory=dict)
    any_device: bool = False
    require_tcb_up_to_date: bool = False
    outdated_tcb_until: datetime | None = None
    frozen_for_good: bool = False
    upgrades_disabled: bool = False
    frozen_until: datetime | None = None

    def live_versions(self, at: datetime) -> tuple[KnownVersion, ...]:
        """The versions that are allowed at *at*, if nobody acts until then; by number."""
        holding = set(self.holders.values())
        return tuple(
            known for number, known in sorted(self.versions.items()) if number in holding and not known.is_over(at)
        )

    def is_allowed(self, compose_hash: ComposeHash, at: datetime) -> bool:
        """Whether some machine with this compose hash may get keys at *at*, if nobody acts until then."""
        by_version = (known.version.compose_hash for known in self.live_versions(at))
        return compose_hash in self.compose_hashes or compose_hash in by_version

    @property
    def newest_version(self) -> int:
        """Number of the newest version; 0 for none."""
        return max(self.versions, default=0)


@dataclass(slots=True)
class Allowed:
    """Everything that the contracts allow."""

    kms_measurements: set[Digest32] = field(default_factory=set)
    kms_devices: set[DeviceId] = field(default_factory=set)
    os_images: set[OsImageHash] = field(default_factory=set)
    gateway_app_id: str = ""
    app_implementation: ChecksumAddress | None = None
    upgrades_disabled: bool = False
    key_epoch: int = 0
    previous_epoch_until: datetime | None = None
    kms_info: KmsInfo | None = None
    apps: dict[ChecksumAddress, AllowedApp] = field(default_factory=dict)


def registered_apps(events: Iterable[PastEvent]) -> tuple[ChecksumAddress, ...]:
    """The apps that KmsAuth's events name, oldest first."""
    found = (to_checksum_address(event.arguments["appId"]) for event in events if event.name == "AppRegistered")
    return tuple(dict.fromkeys(found))


def allowed_after(
    events: Iterable[PastEvent], *, kms_auth: ChecksumAddress, apps: Iterable[ChecksumAddress]
) -> Allowed:
    """Fold *events* of KmsAuth and of *apps*, in order, into what they leave allowed."""
    allowed = Allowed(apps={address: AllowedApp(address) for address in apps})
    for event in events:
        if event.contract == kms_auth:
            _on_kms(allowed, event)
        elif event.contract in allowed.apps:
            _on_app(allowed.apps[event.contract], event)
    return allowed


def _on_kms(allowed: Allowed, event: PastEvent) -> None:
    arguments = event.arguments
    lists: dict[str, Callable[[], None]] = {
        "KmsAggregatedMrAdded": lambda: allowed.kms_measurements.add(Digest32(arguments["mrAggregated"])),
        "KmsAggregatedMrRemoved": lambda: allowed.kms_measurements.discard(Digest32(arguments["mrAggregated"])),
        "KmsDeviceAdded": lambda: allowed.kms_devices.add(DeviceId(arguments["deviceId"])),
        "KmsDeviceRemoved": lambda: allowed.kms_devices.discard(DeviceId(arguments["deviceId"])),
        "OsImageHashAdded": lambda: allowed.os_images.add(OsImageHash(arguments["osImageHash"])),
        "OsImageHashRemoved": lambda: allowed.os_images.discard(OsImageHash(arguments["osImageHash"])),
    }
    if event.name in lists:
        lists[event.name]()
    elif event.name == "GatewayAppIdSet":
        allowed.gateway_app_id = str(arguments["gatewayAppId"])
    elif event.name == "AppImplementationSet":
        allowed.app_implementation = to_checksum_address(arguments["implementation"])
    elif event.name == "UpgradesDisabled":
        allowed.upgrades_disabled = True
    elif event.name == "KmsInfoPublished":
        info = arguments["info"]
        allowed.kms_info = KmsInfo(*(bytes(info[name]) for name in ("k256Pubkey", "caPubkey", "quote", "eventlog")))
    elif event.name == "KeyEpochBegan":
        allowed.key_epoch = arguments["current"]
        allowed.previous_epoch_until = _time(arguments["previousServedUntil"])
    elif event.name in ("AppFrozen", "AppUnfrozen"):
        app = allowed.apps.get(to_checksum_address(arguments["appId"]))
        if app is not None:
            app.frozen_until = _time(arguments["until"]) if event.name == "AppFrozen" else event.at


def _on_app(app: AllowedApp, event: PastEvent) -> None:
    arguments = event.arguments
    lists: dict[str, Callable[[], None]] = {
        "ComposeHashAdded": lambda: app.compose_hashes.add(ComposeHash(arguments["composeHash"])),
        "ComposeHashRemoved": lambda: app.compose_hashes.discard(ComposeHash(arguments["composeHash"])),
        "DeviceAdded": lambda: app.devices.add(DeviceId(arguments["deviceId"])),
        "DeviceRemoved": lambda: app.devices.discard(DeviceId(arguments["deviceId"])),
    }
    if event.name in lists:
        lists[event.name]()
    elif event.name == "VersionAdded":
        version = _version(arguments["version"])
        app.versions[version.number] = KnownVersion(version)
        app.holders |= {(version.compose_hash, image): version.number for image in version.os_image_hashes}
    elif event.name == "VersionEndSet":
        app.versions[arguments["number"]].ends_at = _time(arguments["endsAt"])
    elif event.name == "VersionsRemoved":
        _remove(app, ComposeHash(arguments["composeHash"]), arguments["newest"])
    elif event.name == "AllowAnyDeviceSet":
        app.any_device = bool(arguments["allowAny"])
    elif event.name == "RequireTcbUpToDateSet":
        app.require_tcb_up_to_date = bool(arguments["requireUpToDate"])
    elif event.name == "OutdatedTcbToleratedUntil":
        app.outdated_tcb_until = _time(arguments["until"])
    elif event.name == "AppFrozenForGood":
        app.frozen_for_good = True
    elif event.name == "UpgradesDisabled":
        app.upgrades_disabled = True


def _remove(app: AllowedApp, compose_hash: ComposeHash, newest: int) -> None:
    for number, known in app.versions.items():
        if number <= newest and known.version.compose_hash == compose_hash:
            known.removed = True


def _version(fields: Mapping[str, Any]) -> AppVersion:
    return AppVersion(
        number=fields["number"],
        compose_hash=ComposeHash(fields["composeHash"]),
        os_image_hashes=tuple(map(OsImageHash, fields["osImageHashes"])),
        registers=tuple(map(_registers, fields["registers"])),
        supersedes=fields["supersedes"],
        sunset=_time(fields["sunset"]),
        is_rollback=fields["isRollback"],
    )


def _registers(fields: Mapping[str, Any]) -> RegisterSet:
    mrtd, rtmr0, rtmr1, rtmr2 = (Register(fields[name]) for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2"))
    return RegisterSet(mrtd, rtmr0, rtmr1, rtmr2, Register(fields["rtmr3"]) if fields["rtmr3"] else None)


def _time(seconds: int) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None
