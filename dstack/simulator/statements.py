"""NOT PRODUCTION. What a simulated maker says about its platform: TCB info, QE identity, CRLs.

The TCB status of a quote is chosen by component 2 of its TEE_TCB_SVN:

    9  UpToDate                             5  OutOfDate
    8  SWHardeningNeeded                    4  OutOfDateConfigurationNeeded
    7  ConfigurationNeeded                  3  Revoked
    6  ConfigurationAndSWHardeningNeeded    less: no level matches, the quote is refused

Every level but UpToDate carries one advisory, `SIMULATED-SA-0000<component>`.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from dstack.attestation.pck import PckExtension
from dstack.attestation.tcb import LEVEL_STATUSES, TcbStatus
from dstack.simulator.certificates import Issuer, authority_key_identifier

VALIDITY = timedelta(days=30)
EVALUATION_NUMBER = 18
STATUS_SVN: Final = {status: 9 - worse for worse, status in enumerate(LEVEL_STATUSES)}

QE_MR_SIGNER = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
QE_PROD_ID = 2
SGX_QE_PROD_ID = 1
QE_SVN = 4
_TCB_DATE = "2024-03-13T00:00:00Z"
_MODULE = {"mrsigner": "00" * 48, "attributes": "00" * 8, "attributesMask": "FF" * 8}

_Json = dict[str, object]


def tcb_info(
    platform: PckExtension, *, at: datetime, evaluation_number: int = EVALUATION_NUMBER, sgx: bool = False
) -> str:
    """The TCB info text for *platform*: for TDX one level per status, for SGX the one that it has."""
    if sgx:
        level = _platform_level(platform, TcbStatus.UP_TO_DATE, tdx=False)
        return _compact({"id": "SGX", **_about(platform, at, evaluation_number), "tcbLevels": [level]})
    module = {"tcb": {"isvsvn": 4}, "tcbDate": _TCB_DATE, "tcbStatus": TcbStatus.UP_TO_DATE.value}
    return _compact(
        {
            "id": "TDX",
            **_about(platform, at, evaluation_number),
            "tdxModule": _MODULE,
            "tdxModuleIdentities": [{"id": "TDX_01", **_MODULE, "tcbLevels": [module]}],
            "tcbLevels": [_platform_level(platform, status) for status in LEVEL_STATUSES],
        }
    )


def qe_identity(*, at: datetime, evaluation_number: int = EVALUATION_NUMBER, sgx: bool = False) -> str:
    """The identity text of the simulated quoting enclave for TDs, or for SGX enclaves."""
    return _compact(
        {
            "id": "QE" if sgx else "TD_QE",
            "version": 2,
            **_period(at),
            "tcbEvaluationDataNumber": evaluation_number,
            "miscselect": "00" * 4,
            "miscselectMask": "FF" * 4,
            "attributes": "11" + "00" * 15,
            "attributesMask": "FB" + "FF" * 7 + "00" * 8,
            "mrsigner": QE_MR_SIGNER.hex().upper(),
            "isvprodid": SGX_QE_PROD_ID if sgx else QE_PROD_ID,
            "tcbLevels": [
                {"tcb": {"isvsvn": QE_SVN}, "tcbDate": _TCB_DATE, "tcbStatus": TcbStatus.UP_TO_DATE.value},
            ],
        }
    )


def revocation_list(
    issuer: Issuer, *, at: datetime, revoked: tuple[int, ...] = (), number: int = 1
) -> x509.CertificateRevocationList:
    """A CRL by *issuer* that lists the serial numbers in *revoked*."""
    builder = (
        x509.CertificateRevocationListBuilder(issuer.name, at, at + VALIDITY)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(authority_key_identifier(issuer.key), critical=False)
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder(serial, at).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuer.key, hashes.SHA256(), ecdsa_deterministic=True)


def _about(platform: PckExtension, at: datetime, evaluation_number: int) -> _Json:
    return {
        "version": 3,
        **_period(at),
        "fmspc": platform.fmspc.hex().upper(),
        "pceId": platform.pce_id.hex().upper(),
        "tcbType": 0,
        "tcbEvaluationDataNumber": evaluation_number,
    }


def _platform_level(platform: PckExtension, status: TcbStatus, *, tdx: bool = True) -> _Json:
    svn = STATUS_SVN[status]
    tcb: _Json = {
        "sgxtcbcomponents": [{"svn": component} for component in platform.cpu_svn],
        "pcesvn": platform.pce_svn,
    }
    if tdx:
        tcb["tdxtcbcomponents"] = [{"svn": svn if component == 2 else 0} for component in range(16)]
    level: _Json = {
        "tcb": tcb,
        "tcbDate": _TCB_DATE,
        "tcbStatus": status.value,
    }
    if status is not TcbStatus.UP_TO_DATE:
        level["advisoryIDs"] = [f"SIMULATED-SA-{svn:05}"]
    return level


def _period(at: datetime) -> _Json:
    return {"issueDate": _intel_time(at), "nextUpdate": _intel_time(at + VALIDITY)}


def _intel_time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _compact(document: _Json) -> str:
    return json.dumps(document, separators=(",", ":"))
