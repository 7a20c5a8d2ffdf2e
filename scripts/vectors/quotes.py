"""The kinds of the folder `quotes`: real quotes in folders of their own, and mutated quotes of a simulated maker.

A folder with `quote.bin` and `expect.json` is one case; with `collateral.json` its quote is verified, without only what
is in it is compared. A folder with `cases.json` brings its own root and many cases.
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import dcap_qvl

from dstack.attestation.certificates import common_name, der_of, parse_chain
from dstack.attestation.collateral import parse_collateral
from dstack.attestation.pck import PckExtension, claimed_platform
from dstack.attestation.quote import EnclaveReport, Quote, TdReport, parse_quote
from dstack.attestation.roots import INTEL_ROOTS, INTEL_SGX_ROOT, TrustedRoots, simulated_root
from dstack.attestation.tcb import TcbStatus
from dstack.attestation.verification_policy import (
    SELECTABLE_TD_ATTRIBUTES,
    STRICT,
    AcceptStatus,
    AllowLegacyModule,
    AllowTdAttribute,
    VerificationPolicy,
)
from dstack.attestation.verify import VerifiedQuote, verify_quote
from dstack.errors import DstackError, InputError, QuoteMalformedError
from vectors.cases import ShapeError, Tree, read_file
from vectors.compare import Failure, Tally

_FAR = datetime(9999, 1, 1, tzinfo=UTC)
_ANY_STATUS = tuple(AcceptStatus(status, _FAR) for status in TcbStatus if status is not TcbStatus.REVOKED)
_ANY_ATTRIBUTE = tuple(AllowTdAttribute(bit, _FAR) for bit in SELECTABLE_TD_ATTRIBUTES.values())
# Takes whatever a policy may take: "accept" in golden data speaks of signatures, not of policy.
LENIENT = VerificationPolicy(relaxations=(*_ANY_STATUS, *_ANY_ATTRIBUTE, AllowLegacyModule(_FAR)))

_BY_SIGNATURE = "accept-by-signature, reject-by-default-policy"
_PARSE_ONLY = "parse-only"
_SKIPPED = frozenset({"verify_at", "trust_root", "source", "note", "name", "why", "file", "origin"})
_VERDICT = ("result", "status", "advisory_ids", "ppid", "fmspc")
_PROSE = ("reason", "error", "note", "why")
# Members of a part that are compared, or are prose; others are named as not compared.
_KNOWN = {"expect": {*_VERDICT, *_PROSE}, "observed_dcap_qvl_0_7_0": {*_VERDICT, *_PROSE} - {"fmspc"}}
_RTMRS = {"rt_mr0": "rtmr0", "rt_mr1": "rtmr1", "rt_mr2": "rtmr2", "rt_mr3": "rtmr3"}


def folders(root: Path) -> list[Path]:
    """The folders that hold cases of quotes, of whatever name, one level below an area."""
    found = {path.parent for path in root.glob("*/*/cases.json")}
    found |= {path.parent for path in root.glob("*/*/expect.json") if (path.parent / "quote.bin").is_file()}
    return sorted(found)


def run_folder(kind: str, folder: Path) -> Tally:
    """Run the case, or all cases, of one folder."""
    tally = Tally(kind)
    try:
        if (folder / "quote.bin").is_file():
            _run_case(tally, folder)
        if (folder / "cases.json").is_file():
            _run_cases(tally, folder)
    # Whatever goes wrong is a failure of this folder, and the next one is run.
    except Exception as exc:  # noqa: BLE001
        tally.add([Failure("folder", "", "files of a known shape", f"{type(exc).__name__}: {exc}")])
    return tally


def _run_case(tally: Tally, folder: Path) -> None:
    expected = read_file(folder / "expect.json")
    raw = (folder / "quote.bin").read_bytes()
    tally.add(_compare(folder.name, expected, {**_said(raw, expected), **_outcome(folder, raw, expected)}))
    compared = {"quote_type", "ca", "header", "body", "pck", "expect", "result", "observed_dcap_qvl_0_7_0"}
    tally.not_compared |= set(expected) - compared - _SKIPPED
    for name, known in _KNOWN.items():
        part = expected.get(name)
        tally.not_compared |= (
            {f"{name}.{each}" for each in part if each not in known} if isinstance(part, dict) else set()
        )


def _said(raw: bytes, expected: Tree) -> Tree:
    """What is in a quote, by the members that are expected."""
    wanted = {"quote_type", "ca", "header", "body", "pck"} & expected.keys()
    if not wanted:
        return {}
    quote = parse_quote(raw)
    said: Tree = {
        "quote_type": "SGX" if isinstance(quote.body, EnclaveReport) else "TDX",
        "header": _only(_header(quote), expected.get("header")),
        "body": _only(_body(quote.body), expected.get("body")),
    }
    if wanted & {"ca", "pck"}:
        chain = parse_chain(quote.signature.pck_chain_pem, what="PCK chain")
        issuer = chain[0].issuer.rfc4514_string()
        said["ca"] = "processor" if "Processor" in issuer else "platform" if "Platform" in issuer else "unknown"
        said["pck"] = _only(_pck(claimed_platform(quote)), expected.get("pck"))
    return {name: said[name] for name in wanted}


def _only(said: Tree, expected: object) -> Tree:
    """The members that are expected: a case may say less than a quote does."""
    return {name: said[name] for name in said if isinstance(expected, dict) and name in expected}


def _header(quote: Quote) -> Tree:
    return {
        "version": quote.version,
        "att_key_type": 2,
        "tee_type": quote.tee_type,
        "qe_svn": quote.qe_svn,
        "pce_svn": quote.pce_svn,
        "qe_vendor_id": quote.vendor.hex(),
        "qe_vendor": quote.vendor.hex(),
        "user_data": quote.user_data.hex(),
    }


def _body(body: TdReport | EnclaveReport) -> Tree:
    names = {name: name for name in type(body).__dataclass_fields__} | _RTMRS
    fields: Tree = {}
    for name, ours in names.items():
        value = getattr(body, ours, None)
        if value is not None:
            fields[name] = value if isinstance(value, int) else value.hex()
    return fields


def _pck(platform: PckExtension) -> Tree:
    return {
        "ppid": platform.ppid.hex(),
        "cpu_svn": platform.cpu_svn.hex(),
        "pce_svn": platform.pce_svn,
        "pce_id": platform.pce_id.hex(),
        "fmspc": platform.fmspc.hex(),
        "sgx_type": platform.sgx_type,
        "platform_instance_id": None if platform.platform_instance_id is None else platform.platform_instance_id.hex(),
        "dynamic_platform": platform.dynamic_platform,
        "cached_keys": platform.cached_keys,
        "smt_enabled": platform.smt_enabled,
    }


def _outcome(folder: Path, raw: bytes, expected: Tree) -> Tree:
    """What verification says; nothing where there is no collateral."""
    expectation = expected.get("expect")
    result = expectation.get("result") if isinstance(expectation, dict) else expectation or expected.get("result")
    path = folder / "collateral.json"
    if not path.is_file() or result == _PARSE_ONLY:
        # Nothing but what is in it: parsing must have succeeded.
        parse_quote(raw)
        return {}
    text, at = path.read_bytes().decode(), _moment(expected["verify_at"])
    roots = _named_roots(folder, str(expected.get("trust_root", "")))
    lenient, strict = (_answer(raw, text, roots, at, policy) for policy in (_listing(raw, LENIENT), _own(raw)))
    said: Tree = {}
    if isinstance(expectation, dict):
        said["expect"] = _as_expected(expectation, lenient, strict)
    for name in ("expect", "result"):
        if isinstance(stated := expected.get(name), str):
            said[name] = stated if _agrees(stated, lenient, strict) else _words(lenient, strict)
    observed = expected.get("observed_dcap_qvl_0_7_0")
    if isinstance(observed, dict):
        said["observed_dcap_qvl_0_7_0"] = _observed(observed, raw, text, roots, at)
    return said


def _as_expected(expectation: Tree, lenient: VerifiedQuote | DstackError, strict: VerifiedQuote | DstackError) -> Tree:
    """The expectation with what was found in the places of its verdict; its reason is prose."""
    found: Tree = dict.fromkeys(_VERDICT)
    if isinstance(lenient, VerifiedQuote):
        found["status"], found["advisory_ids"] = lenient.tcb_status.value, list(lenient.advisory_ids)
        found["ppid"], found["fmspc"] = lenient.ppid.hex(), lenient.fmspc.hex()
    if "result" in expectation:
        agrees = _agrees(str(expectation["result"]), lenient, strict)
        found["result"] = expectation["result"] if agrees else _words(lenient, strict)
    return {name: found.get(name, value) for name, value in expectation.items()}


def _agrees(result: str, lenient: VerifiedQuote | DstackError, strict: VerifiedQuote | DstackError) -> bool:
    genuine, accepted = isinstance(lenient, VerifiedQuote), isinstance(strict, VerifiedQuote)
    known = {
        "accept": genuine and accepted,
        _BY_SIGNATURE: genuine and not accepted,
        "reject": not genuine and not accepted,
        "accept-or-reject": True,
    }
    return known[result] if result in known else _is_expected(result, lenient, strict)


def _words(lenient: VerifiedQuote | DstackError, strict: VerifiedQuote | DstackError) -> str:
    return f"lenient: {_word(lenient)}; strict: {_word(strict)}"


def _word(answer: VerifiedQuote | DstackError) -> str:
    return f"accept:{answer.tcb_status.value}" if isinstance(answer, VerifiedQuote) else f"reject: {answer}"


def _answer(
    raw: bytes, collateral: str, roots: TrustedRoots, at: datetime, policy: VerificationPolicy
) -> VerifiedQuote | DstackError:
    try:
        return verify_quote(raw, parse_collateral(collateral), roots=roots, at=at, policy=policy)
    except DstackError as exc:
        return exc


def _own(raw: bytes) -> VerificationPolicy:
    """The default; an enclave is accepted by nobody who does not name it."""
    return _listing(raw, STRICT)


def _listing(raw: bytes, policy: VerificationPolicy) -> VerificationPolicy:
    try:
        body = parse_quote(raw).body
    except QuoteMalformedError:
        return policy
    return replace(policy, mr_enclaves=frozenset({body.mr_enclave})) if isinstance(body, EnclaveReport) else policy


def _observed(observed: Tree, raw: bytes, text: str, roots: TrustedRoots, at: datetime) -> Tree:
    """What the quote library says today; why it refuses is prose."""
    try:
        form = dcap_qvl.QuoteCollateralV3.from_json(text)
        answer = dcap_qvl.verify_with_root_ca(raw, form, roots.roots[0].certificate_der, int(at.timestamp()))
    except (ValueError, OverflowError):
        return {**observed, "result": "reject"}
    found: Tree = {
        "result": "accept",
        "status": answer.status,
        "advisory_ids": list(answer.advisory_ids),
        "ppid": answer.ppid.hex(),
    }
    return {name: found.get(name, value) for name, value in observed.items()}


def _moment(stated: object) -> datetime:
    """Unix time, or a time in the form of RFC 3339."""
    if isinstance(stated, str):
        return datetime.fromisoformat(stated)
    return datetime.fromtimestamp(int(str(stated)), UTC)


def _named_roots(folder: Path, name: str) -> TrustedRoots:
    """Intel's root or a simulator's, by its name; else the one that a file beside the quote holds."""
    if name == INTEL_SGX_ROOT.names.root:
        return INTEL_ROOTS
    for path in (folder / "root.der", *sorted(folder.parent.glob("*/root.der"))):
        if path.is_file() and simulated_root(path.read_bytes()).names.root == name:
            return _roots(path.parent, path.name)
    return _roots(folder, name or "root.der")


def _roots(folder: Path, stated: str) -> TrustedRoots:
    """A root from a file beside the cases, or written out as PEM, base64 or hexadecimal."""
    path = folder / stated if len(stated) < 200 and "\n" not in stated else None
    if path is not None and path.resolve().is_relative_to(folder.resolve()) and path.is_file():
        raw = path.read_bytes()
    elif stated.startswith("-----BEGIN"):
        raw = stated.encode()
    else:
        try:
            raw = bytes.fromhex(stated)
        except ValueError:
            raw = b64decode(stated)
    if raw.startswith(b"-----BEGIN"):
        raw = der_of(parse_chain(raw, what="root")[0])
    if raw == INTEL_SGX_ROOT.certificate_der:
        return INTEL_ROOTS
    return TrustedRoots((simulated_root(raw),))


def _run_cases(tally: Tally, folder: Path) -> None:
    tree = read_file(folder / "cases.json")
    roots = _roots(folder, str(tree.get("root", "root.der")))
    base = _base_collateral(folder, tree.get("base_collateral", "collateral.json"))
    quotes = {name: b64decode(text) for name, text in tree.get("quotes_base64", {}).items()}
    for case in tree.get("cases", ()):
        tally.add(_one_case(case, tree, quotes, base, roots))
        known = {"expect", "dcap_qvl_0_7_0", "mutate", "quote", "collateral_override", "at"}
        tally.not_compared |= set(case) - known - _SKIPPED
    if "good" in quotes:
        tally.add(_compare("file", tree, _about_good(tree, quotes["good"], base, roots)))


def _base_collateral(folder: Path, stated: object) -> Tree:
    if isinstance(stated, dict):
        return stated
    if (folder / str(stated)).parent != folder:
        raise ShapeError(f"want a file in {folder}, got {stated}")
    return read_file(folder / str(stated))


def _one_case(case: Tree, tree: Tree, quotes: Mapping[str, bytes], base: Tree, roots: TrustedRoots) -> list[Failure]:
    try:
        return list(_case_failures(case, tree, quotes, base, roots))
    # Whatever goes wrong is a failure of this case, and the next one is run.
    except Exception as exc:  # noqa: BLE001
        return [Failure(str(case.get("name")), "", "a case of a known shape", f"{type(exc).__name__}: {exc}")]


def _case_failures(
    case: Tree, tree: Tree, quotes: Mapping[str, bytes], base: Tree, roots: TrustedRoots
) -> Iterator[Failure]:
    name = str(case.get("name"))
    raw = _mutated(quotes[case.get("quote", "good")], case.get("mutate", {}))
    text = json.dumps({**base, **case.get("collateral_override", {})})
    at = _moment(case.get("at", tree.get("now")))
    lenient = _answer(raw, text, roots, at, _listing(raw, LENIENT))
    strict = _answer(raw, text, roots, at, _own(raw))
    expected = str(case.get("expect"))
    if not _is_expected(expected, lenient, strict):
        yield Failure(name, "expect", expected, _words(lenient, strict))
    library = str(case.get("dcap_qvl_0_7_0", ""))
    got = _library(raw, text, roots, at)
    if library and got != (library if library.startswith("accept") else library.partition(":")[0]):
        yield Failure(name, "dcap_qvl_0_7_0", library, got)


def _is_expected(expected: str, lenient: VerifiedQuote | DstackError, strict: VerifiedQuote | DstackError) -> bool:
    if expected.startswith("accept:"):
        up_to_date = expected == f"accept:{TcbStatus.UP_TO_DATE.value}"
        return _word(lenient) == expected and (up_to_date or not isinstance(strict, VerifiedQuote))
    if expected == "policy":
        # An outcome of the policy: not an error of form.
        return not isinstance(strict, InputError)
    return expected == "accept-or-reject" or (expected == "reject" and not isinstance(lenient, VerifiedQuote))


def _library(raw: bytes, text: str, roots: TrustedRoots, at: datetime) -> str:
    try:
        form = dcap_qvl.QuoteCollateralV3.from_json(text)
        answer = dcap_qvl.verify_with_root_ca(raw, form, roots.roots[0].certificate_der, int(at.timestamp()))
    except (ValueError, OverflowError):
        return "reject"
    return f"accept:{answer.status}"


def _mutated(base: bytes, mutation: Tree) -> bytes:
    unknown = sorted(set(mutation) - {"xor", "cut", "append", "why"})
    if unknown:
        raise ShapeError(f"unknown mutation {unknown[0]}")
    raw = bytearray(base)
    for offset, mask in mutation.get("xor", {}).items():
        raw[int(offset)] ^= mask
    return bytes(raw[: mutation.get("cut", len(raw))]) + bytes.fromhex(mutation.get("append", ""))


def _about_good(tree: Tree, raw: bytes, base: Tree, roots: TrustedRoots) -> Tree:
    """What the file says of its unmutated quote."""
    at = _moment(tree["now"])
    verified = verify_quote(raw, parse_collateral(json.dumps(base)), roots=roots, at=at, policy=_listing(raw, LENIENT))
    names = verified.root.names
    authority = common_name(parse_chain(verified.quote.signature.pck_chain_pem, what="PCK chain")[1].subject)
    said = {
        "report_data": verified.quote.report_data.hex(),
        "fmspc": verified.fmspc.hex(),
        "ppid": verified.ppid.hex(),
        "subject_names": [names.root, authority, names.pck, names.tcb_signer],
    }
    return {name: value for name, value in said.items() if name in tree}


def _compare(case: str, expected: Tree, said: Tree) -> Iterator[Failure]:
    for name, got in said.items():
        if name in expected and json.dumps(expected[name], sort_keys=True) != json.dumps(got, sort_keys=True):
            yield Failure(case, name, json.dumps(expected[name]), json.dumps(got))
