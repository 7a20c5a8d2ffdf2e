"""Boot info: the struct the contracts judge."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dstack.attestation.quote import TdReport
from dstack.errors import AppraisalError
from dstack.measurement.identities import mr_aggregated, mr_key_provider, mr_system
from dstack.values import AppId, ComposeHash, DeviceId, Digest32, InstanceId, OsImageHash

if TYPE_CHECKING:
    from dstack.attestation.appraise import Appraisal

_NO_INSTANCE = bytes(20)

AbiTuple = tuple[bytes, bytes, bytes, bytes, bytes, bytes, bytes, str, list[str]]


@dataclass(frozen=True, slots=True)
class BootInfo:
    """What the contracts are asked about. Made by `boot_info` from an appraisal, never from a claim."""

    app_id: AppId
    compose_hash: ComposeHash
    instance_id: InstanceId | None
    device_id: DeviceId
    mr_aggregated: Digest32
    mr_system: Digest32
    os_image_hash: OsImageHash
    tcb_status: str
    advisory_ids: tuple[str, ...] = ()
    key_provider_info: bytes = b""
    tee_variant: str = "dstack-tdx"

    def abi_tuple(self) -> AbiTuple:
        """The `AppBootInfo` tuple in the order of the contracts' ABI; addresses as 20 raw bytes."""
        return (
            bytes(self.app_id),
            bytes(self.compose_hash),
            bytes(self.instance_id) if self.instance_id else _NO_INSTANCE,
            bytes(self.device_id),
            bytes(self.mr_aggregated),
            bytes(self.mr_system),
            bytes(self.os_image_hash),
            self.tcb_status,
            list(self.advisory_ids),
        )

    def to_json(self) -> str:
        """The camelCase form of upstream's webhook, hexadecimal without `0x`."""
        return json.dumps(
            {
                "teeVariant": self.tee_variant,
                "attestationMode": self.tee_variant,
                "mrAggregated": self.mr_aggregated.hex(),
                "osImageHash": self.os_image_hash.hex(),
                "mrSystem": self.mr_system.hex(),
                "appId": self.app_id.hex(),
                "composeHash": self.compose_hash.hex(),
                "instanceId": self.instance_id.hex() if self.instance_id else "",
                "deviceId": self.device_id.hex(),
                "keyProviderInfo": self.key_provider_info.hex(),
                "tcbStatus": self.tcb_status,
                "advisoryIds": list(self.advisory_ids),
            },
            separators=(",", ":"),
        )


def boot_info(appraisal: Appraisal) -> BootInfo:
    """Put an appraisal into the form the contracts judge.

    Raises:
        AppraisalError: The evidence names no app or no compose hash.
    """
    if appraisal.app_id is None:
        raise AppraisalError("boot info: want an app-id event of 20 bytes, got none")
    if appraisal.compose_hash is None:
        raise AppraisalError("boot info: want a compose-hash event of 32 bytes, got none")
    return BootInfo(
        app_id=appraisal.app_id,
        compose_hash=appraisal.compose_hash,
        instance_id=appraisal.instance_id,
        device_id=appraisal.device_id,
        mr_aggregated=appraisal.mr_aggregated,
        mr_system=appraisal.mr_system,
        os_image_hash=appraisal.os_image_hash,
        tcb_status=appraisal.verified.tcb_status.value,
        advisory_ids=appraisal.verified.advisory_ids,
        key_provider_info=appraisal.key_provider_info,
    )


def boot_time_info(appraisal: Appraisal) -> BootInfo:
    """The same as it stood when the machine asked for its keys: RTMR3 up to `boot-mr-done`, no key provider yet.

    Certificates are asked for at any later time, when the app may have extended RTMR3; the chain is asked about what
    the machine was started with (kms.md 6.2).

    Raises:
        AppraisalError: As `boot_info`, or the log does not reach `boot-mr-done`.
    """
    if appraisal.rtmr3_boot is None:
        raise AppraisalError("boot info: want a boot-mr-done event, got none")
    report = appraisal.verified.quote.body
    if not isinstance(report, TdReport):
        raise AppraisalError("boot info: want the quote of a TD, got that of an SGX enclave")
    return replace(
        boot_info(appraisal),
        mr_aggregated=mr_aggregated(
            report.mr_td,
            report.rtmr0,
            report.rtmr1,
            report.rtmr2,
            appraisal.rtmr3_boot,
            mr_config_id=report.mr_config_id,
            mr_owner=report.mr_owner,
            mr_owner_config=report.mr_owner_config,
        ),
        mr_system=mr_system(report.mr_td, report.rtmr0, report.rtmr1, report.rtmr2, mr_key_provider(None)),
        key_provider_info=b"",
    )
