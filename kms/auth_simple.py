"""`python -m kms.auth_simple`: an auth server that decides by a JSON file, for where there is no chain (kms.md 6.3).

Environment variables (upstream's):
  HOST, PORT          where to answer; 127.0.0.1 and 3000
  AUTH_CONFIG_PATH    the file, read anew for every question; ./auth-config.json

The file, everything in it optional:
  {"gatewayAppId": "", "kmsContractAddr": "0x0...", "chainId": 0, "appImplementation": "0x0...",
   "osImages": [], "allowedTcbStatuses": ["UpToDate"], "allowedAdvisoryIds": [],
   "kms": {"mrAggregated": [], "devices": [], "allowAnyDevice": false},
   "apps": {"<app id>": {"composeHashes": [], "devices": [], "allowAnyDevice": false}}}

A file that is missing or not of this form allows nothing. Unlike upstream's, an empty list of devices allows no device.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from kms.auth_server import ZERO_ADDRESS, Answer, BootRequest, Kind, serve

DEFAULT_PORT = 3000
FILE_LIMIT = 4 << 20

_log = logging.getLogger("auth")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", alias_generator=to_camel)


class KmsPolicy(_Part):
    """Which machines may be a KMS."""

    mr_aggregated: list[str] = Field(default_factory=list)
    devices: list[str] = Field(default_factory=list)
    allow_any_device: bool = False


class AppPolicy(_Part):
    """Which versions of one app get keys, and where."""

    compose_hashes: list[str] = Field(default_factory=list)
    devices: list[str] = Field(default_factory=list)
    allow_any_device: bool = False


class Policy(_Part):
    """The whole file; what it does not say is not allowed."""

    gateway_app_id: str = ""
    kms_contract_addr: str = ZERO_ADDRESS
    chain_id: int = 0
    app_implementation: str = ZERO_ADDRESS
    os_images: list[str] = Field(default_factory=list)
    allowed_tcb_statuses: list[str] = Field(default_factory=lambda: ["UpToDate"])
    allowed_advisory_ids: list[str] = Field(default_factory=list)
    kms: KmsPolicy = KmsPolicy()
    apps: dict[str, AppPolicy] = Field(default_factory=dict)

    def decide(self, kind: Kind, request: BootRequest) -> Answer:
        """Upstream's order and words; the first rule that fails decides."""
        reason = self._common_reason(request) or (
            self._kms_reason(request) if kind == "kms" else self._app_reason(request)
        )
        return Answer(not reason, reason, self.gateway_app_id)

    def _common_reason(self, request: BootRequest) -> str:
        if request.tcb_status not in self.allowed_tcb_statuses:
            return "TCB status is not allowed"
        if not set(request.advisory_ids) <= set(self.allowed_advisory_ids):
            return "advisory ID is not allowed"
        return "" if _lists(self.os_images, request.os_image_hash) else "OS image is not allowed"

    def _kms_reason(self, request: BootRequest) -> str:
        if not _lists(self.kms.mr_aggregated, request.mr_aggregated):
            return "aggregated MR not allowed"
        if not self.kms.allow_any_device and not _lists(self.kms.devices, request.device_id):
            return "KMS is not allowed to boot on this device"
        return ""

    def _app_reason(self, request: BootRequest) -> str:
        apps = {_form(app_id): policy for app_id, policy in self.apps.items()}
        app = apps.get(_form(request.app_id)) if request.app_id else None
        if app is None:
            return "app not registered"
        if not _lists(app.compose_hashes, request.compose_hash):
            return "compose hash not allowed"
        if not app.allow_any_device and not _lists(app.devices, request.device_id):
            return "app is not allowed to boot on this device"
        return ""


class FileDecider:
    """Decides by a file, as it is at that moment."""

    def __init__(self, path: Path) -> None:
        """Take the path; it is read when somebody asks."""
        self._path = path

    def decide(self, kind: Kind, request: BootRequest) -> Answer:
        """As `Decider`."""
        return self.policy().decide(kind, request)

    def about(self) -> Mapping[str, object]:
        """As `Decider`."""
        policy = self.policy()
        return {
            "kmsContractAddr": policy.kms_contract_addr,
            "ethRpcUrl": "",
            "gatewayAppId": policy.gateway_app_id,
            "chainId": policy.chain_id,
            "appAuthImplementation": policy.app_implementation,
            "appImplementation": policy.app_implementation,
        }

    def policy(self) -> Policy:
        """What the file says; nothing is allowed by one that cannot be read."""
        try:
            with self._path.open("rb") as stream:
                raw = stream.read(FILE_LIMIT + 1)
            if len(raw) > FILE_LIMIT:
                raise ValueError(f"want at most {FILE_LIMIT} bytes")
            _warn_of_unknown(json.loads(raw))
            return Policy.model_validate_json(raw)
        except OSError as exc:
            _log.warning("%s: %s: nothing is allowed", self._path, exc.strerror or exc)
        except ValidationError as exc:
            places = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in exc.errors())
            _log.warning("%s: %s: nothing is allowed", self._path, places)
        except ValueError as exc:
            _log.warning("%s: not JSON: %s: nothing is allowed", self._path, exc)
        return Policy()


def _warn_of_unknown(content: object) -> None:
    """What is misspelled allows nothing, which somebody may wonder about."""
    known = {to_camel(name) for name in Policy.model_fields}
    for name in sorted(set(content) - known) if isinstance(content, dict) else ():
        _log.warning("policy: %r is not a setting", name[:80])


def opened_decider(environment: Mapping[str, str]) -> AbstractContextManager[FileDecider]:
    """The decider that the environment describes; it holds nothing open."""
    return nullcontext(FileDecider(Path(environment.get("AUTH_CONFIG_PATH") or "./auth-config.json")))


def _lists(allowed: list[str], value: str) -> bool:
    """Whether *value* is in the list; an empty value is in none, whatever the list says."""
    return _form(value) != "0x" and _form(value) in map(_form, allowed)


def _form(text: str) -> str:
    """Hexadecimal as it is compared: lower case, with `0x`."""
    lower = text.lower()
    return lower if lower.startswith("0x") else f"0x{lower}"


if __name__ == "__main__":
    sys.exit(serve(__doc__ or "", DEFAULT_PORT, opened_decider))
