"""TCB levels, matched by ourselves; the quote library, asked beside us in `verify_quote`, must agree every time."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dstack.attestation.collateral import Collateral
from dstack.attestation.distance import Gap
from dstack.attestation.tcb import TcbStatus
from dstack.attestation.tcb_match import Part
from dstack.attestation.verification_policy import AcceptStatus, AllowLegacyModule, VerificationPolicy
from dstack.attestation.verify import QuoteChecks, check_quote
from dstack.simulator.pki import raw_signature
from dstack.simulator.quoting import Form, QuotingEnclave, make_quote
from dstack.simulator.statements import VALIDITY
from dstack.values import ReportData

MODULE_LEVELS = ((4, "UpToDate"), (2, "OutOfDate"))


@pytest.fixture
def check(pki, roots, registers, at):
    """Checks a TD 1.5 that was launched under one SVN and runs under another; every status is accepted."""

    def levels(pairs, advisory):
        return [
            {"tcb": {"isvsvn": svn}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": status, "advisoryIDs": [advisory]}
            for svn, status in pairs
        ]

    def collateral(module, qe, platform) -> Collateral:
        good = pki.collateral()
        info, identity = json.loads(good.tcb_info), json.loads(good.qe_identity)
        info["tdxModuleIdentities"][0]["tcbLevels"] = levels(module, "MODULE")
        identity["tcbLevels"] = levels(qe, "QE")
        if platform:
            info["tcbLevels"] = [{**info["tcbLevels"][0], "tcbStatus": platform}]
        texts = {"tcb_info": json.dumps(info), "qe_identity": json.dumps(identity)}
        signatures = {
            f"{name}_signature": raw_signature(pki.keys.tcb_signer, text.encode()) for name, text in texts.items()
        }
        return replace(good, **texts, **signatures)

    def check(
        launch, now=None, *, module=MODULE_LEVELS, qe=((4, "UpToDate"),), platform=None, **enclave
    ) -> QuoteChecks:
        until = at + VALIDITY
        statuses = (AcceptStatus(status, until) for status in TcbStatus if status is not TcbStatus.REVOKED)
        svns = {"tee_tcb_svn": bytes(launch).ljust(16, b"\0")}
        if now is not None:
            svns["tee_tcb_svn2"] = bytes(now).ljust(16, b"\0")
        raw = make_quote(
            pki,
            registers=registers,
            report_data=ReportData(bytes(64)),
            fields_override=svns,
            quoting_enclave=QuotingEnclave(**enclave),
            form=Form.V5_TD10 if now is None else Form.V5_TD15,
        )
        return check_quote(
            raw,
            collateral(module, qe, platform),
            roots=roots,
            at=at,
            policy=VerificationPolicy(relaxations=(*statuses, AllowLegacyModule(until))),
        )

    return check


@pytest.mark.parametrize(
    ("launch", "now", "status"),
    [
        ((6, 1, 9), None, "UpToDate"),
        ((6, 1, 9), (6, 1, 9), "UpToDate"),
        ((2, 1, 9), None, "OutOfDate"),
        ((2, 1, 9), (6, 1, 9), "TDRelaunchAdvised"),
        ((2, 1, 9), (2, 1, 9), "OutOfDate"),
        ((6, 1, 5), (6, 1, 9), "TDRelaunchAdvised"),
        ((6, 1, 5), (6, 1, 8), "TDRelaunchAdvised"),
        ((6, 1, 5), (6, 1, 7), "TDRelaunchAdvisedConfigurationNeeded"),
        ((6, 1, 4), (6, 1, 9), "TDRelaunchAdvisedConfigurationNeeded"),
        ((2, 1, 7), (6, 1, 7), "TDRelaunchAdvisedConfigurationNeeded"),
        ((6, 1, 7), (6, 1, 9), "ConfigurationNeeded"),
        ((2, 1, 7), None, "OutOfDateConfigurationNeeded"),
        ((6, 0, 9), (6, 0, 9), "UpToDate"),
        # Stricter than the library: it looks at the module that runs now only for advice.
        ((6, 1, 9), (2, 1, 9), "OutOfDate"),
        ((6, 1, 9), (6, 1, 5), "OutOfDate"),
    ],
)
def test_statuses_follow_from_all_parts(check, launch, now, status):
    """Platform and module, as launched and as they are now, make one status, in which the library sees no less."""
    checks = check(launch, now)

    assert checks.status is TcbStatus(status)
    assert checks.verified is not None


@pytest.mark.parametrize(
    ("platform", "qe", "status"),
    [
        ("UpToDate", "OutOfDate", "OutOfDate"),
        ("SWHardeningNeeded", "OutOfDate", "OutOfDate"),
        ("ConfigurationNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
        ("ConfigurationAndSWHardeningNeeded", "OutOfDate", "OutOfDateConfigurationNeeded"),
        ("OutOfDate", "UpToDate", "OutOfDate"),
        # Stricter than the library, which overlooks it.
        ("UpToDate", "ConfigurationNeeded", "ConfigurationNeeded"),
        ("OutOfDate", "ConfigurationNeeded", "OutOfDate"),
        ("UpToDate", "OutOfDateConfigurationNeeded", "OutOfDateConfigurationNeeded"),
        ("SWHardeningNeeded", "OutOfDateConfigurationNeeded", "OutOfDateConfigurationNeeded"),
    ],
)
def test_the_quoting_enclave_counts(check, platform, qe, status):
    """What the quoting enclave's level says worsens the platform's, and never betters it."""
    checks = check((6, 1, 9), platform=platform, qe=((4, qe),))

    assert checks.status is TcbStatus(status)
    assert checks.verified is not None


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (((6, 1, 1),), {}),
        (((1, 1, 9),), {}),
        (((6, 2, 9),), {}),
        (((6, 1, 9), (1, 1, 9)), {}),
        (((6, 1, 9), (6, 2, 9)), {}),
        (((6, 1, 9), (6, 1, 3)), {}),
        (((6, 1, 3),), {}),
        (((6, 1, 9),), {"isv_svn": 3}),
        (((6, 1, 9),), {"qe": ()}),
        (((6, 1, 9),), {"module": ()}),
        (((6, 1, 9),), {"module": ((4, "Revoked"),)}),
        (((6, 1, 9),), {"qe": ((4, "Revoked"),)}),
    ],
)
def test_no_level_and_revoked_are_refused(check, arguments, settings):
    """A part that reaches no level, or a revoked one, fails item 13 in both verifiers, whatever is accepted."""
    checks = check(*arguments, **settings)

    assert checks.verified is None
    assert [each.item for each in checks.checks if each.outcome.value == "failed"] == [13]


def test_levels_are_tried_in_the_order_of_the_document(check):
    """Modules and enclaves take the first level that they reach, as Intel orders them, like the library."""
    assert check((6, 1, 9), module=((2, "OutOfDate"), (4, "UpToDate"))).status is TcbStatus.OUT_OF_DATE


def test_distances_name_each_part(check):
    """Each part by itself: what is too low and by how much, also where no level is reached."""
    launch, module, now, module_now, qe = check((2, 1, 5), (1, 1, 1)).distances

    assert (launch.part, launch.reached.status) == (Part.PLATFORM, TcbStatus.OUT_OF_DATE)
    assert launch.gaps == (Gap("TDX component 3", 5, 9),)
    assert launch.settled_advisory_ids == ("SIMULATED-SA-00005",)
    assert module.gaps == (Gap("ISVSVN of the TDX module TDX_01", 2, 4),)
    assert (now.part, now.reached, now.gaps) == (Part.PLATFORM_NOW, None, (Gap("TDX component 3", 1, 9),))
    assert (module_now.part, module_now.reached) == (Part.MODULE_NOW, None)
    assert qe.is_best
    assert not launch.is_best


def test_a_better_level_of_equal_svns_is_a_matter_of_settings(check):
    """A quoting enclave without a better level than its own is as good as it gets."""
    distance = check((6, 1, 9), qe=((4, "ConfigurationNeeded"),)).distances[-1]

    assert (distance.part, distance.is_best, distance.gaps) == (Part.QE, True, ())


@pytest.mark.parametrize("form", list(Form))
def test_every_form_of_a_tds_quote_verifies(pki, roots, registers, at, form):
    """Version 4, and version 5 with either body, verify strictly."""
    raw = make_quote(pki, registers=registers, report_data=ReportData(bytes(64)), form=form)

    checks = check_quote(raw, pki.collateral(), roots=roots, at=at)

    assert checks.verified is not None
    assert checks.verified.quote.version == form.value[0]
