"""The methods of the onboarding service, before there are keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dstack.chain.facts import Facts
from dstack.transport.server import CallContext, Method
from dstack.wire.kms import (
    AttestationInfoResponse,
    BootstrapRequest,
    BootstrapResponse,
    OnboardRequest,
    OnboardResponse,
)
from kms.authorization import SelfAuthorization
from kms.config import Settings
from kms.onboard import Onboarding

_TEE_VARIANT = "dstack-tdx"


@dataclass(frozen=True, slots=True)
class OnboardService:
    """The methods of the onboarding service.

    Attributes:
        onboarding: Makes the keys, or fetches them.
        own: What this machine is.
        settings: What an operator wants to see of them.
        finish: Ends the service, after the answer.
        recent_facts: What an auth server last said of its contract, where the settings name none; asks nobody.
    """

    onboarding: Onboarding
    own: SelfAuthorization
    settings: Settings
    finish: Callable[[], None]
    recent_facts: Callable[[], Facts | None] = lambda: None

    def methods(self) -> dict[str, Method]:
        """The table that `prpc_app` serves."""
        return {
            "Bootstrap": Method(BootstrapRequest, self.bootstrap),
            "Onboard": Method(OnboardRequest, self.onboard),
            "GetAttestationInfo": Method(None, self.get_attestation_info),
            "Finish": Method(None, self.finish_onboarding),
        }

    def bootstrap(self, request: BootstrapRequest, context: CallContext) -> BootstrapResponse:
        """Make root keys."""
        return self.onboarding.bootstrap(request.domain, context.request_id)

    def onboard(self, request: OnboardRequest, context: CallContext) -> OnboardResponse:
        """Fetch the root keys of another KMS."""
        return self.onboarding.onboard(request.source_url, request.domain, context.request_id)

    def get_attestation_info(self, _request: None, _context: CallContext) -> AttestationInfoResponse:
        """What the contracts must allow before there can be keys."""
        return self.attestation_info()

    def attestation_info(self) -> AttestationInfoResponse:
        """The same, for the operator's page."""
        appraisal = self.own.appraisal()
        decides, facts = self.settings.core.auth_api, self.recent_facts()
        return AttestationInfoResponse(
            device_id=appraisal.device_id,
            mr_aggregated=appraisal.mr_aggregated,
            os_image_hash=appraisal.os_image_hash,
            tee_variant=_TEE_VARIANT,
            site_name=self.settings.core.site_name,
            eth_rpc_url=decides.shown_rpc_url or (facts.rpc_url if facts else ""),
            kms_contract_address=decides.kms_contract or (facts.kms_contract if facts else ""),
            ppid=appraisal.verified.ppid,
        )

    def finish_onboarding(self, _request: None, _context: CallContext) -> None:
        """Go on to the KMS service."""
        self.onboarding.require_keys()
        self.finish()
