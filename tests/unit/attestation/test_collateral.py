"""Parsing collateral and the two documents in it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from dstack.attestation.collateral import parse_collateral, serialise_collateral
from dstack.attestation.tcb import (
    PlatformLevel,
    Rating,
    TcbInfo,
    TcbStatus,
    TdxModule,
    parse_qe_identity,
    parse_tcb_info,
)
from dstack.errors import CollateralMalformedError


@pytest.fixture(scope="module")
def collateral(pki):
    """A simulated maker's collateral."""
    return pki.collateral()


def test_real_collateral_is_read(quotes):
    """Intel's collateral is read, and what it says about itself is as printed in it."""
    collateral = parse_collateral((quotes / "intel-tdx-v4-uptodate" / "collateral.json").read_bytes())

    info = collateral.parsed_tcb_info()
    assert info == TcbInfo(
        id="TDX",
        version=3,
        issue_date=datetime(2025, 6, 19, 10, 16, 3, tzinfo=UTC),
        next_update=datetime(2025, 7, 19, 10, 16, 3, tzinfo=UTC),
        fmspc=bytes.fromhex("b0c06f000000"),
        pce_id=bytes(2),
        tcb_type=0,
        evaluation_number=17,
        levels=info.levels,
        module=TdxModule(bytes(48), bytes(8), b"\xff" * 8),
        module_identities=info.module_identities,
        sgx_names=info.sgx_names,
        tdx_names=info.tdx_names,
    )
    assert info.levels[0] == PlatformLevel(
        sgx=bytes.fromhex("02020202030100050000000000000000"),
        pce_svn=11,
        tdx=bytes.fromhex("05000200000000000000000000000000"),
        rating=Rating(TcbStatus.UP_TO_DATE, datetime(2024, 3, 13, tzinfo=UTC), ()),
    )
    assert [identity.id for identity in info.module_identities] == ["TDX_03", "TDX_01"]
    assert (info.sgx_names[0], info.tdx_names[0]) == ("BIOS: Early Microcode Update", "OS/VMM: TDX Module")
    assert collateral.parsed_qe_identity().isv_prod_id == 2


@pytest.mark.parametrize("name", ["intel-tdx-v4-uptodate", "intel-sgx-v3-hardening", "intel-tdx-v5-below-lowest-level"])
def test_parsing_undoes_writing(quotes, name):
    """Writing and reading collateral gives the same collateral, document texts to the last byte."""
    collateral = parse_collateral((quotes / name / "collateral.json").read_bytes())

    assert parse_collateral(serialise_collateral(collateral)) == collateral


def test_a_field_more_or_less_is_refused(collateral):
    """A missing field and an unknown one are refused by name; the unused chain of some caches is skipped."""
    fields = json.loads(serialise_collateral(collateral))

    assert parse_collateral(json.dumps({**fields, "pck_certificate_chain": "unused"})) == collateral
    for name in fields:
        with pytest.raises(CollateralMalformedError, match=rf"collateral: member '{name}' is missing"):
            parse_collateral(json.dumps({other: value for other, value in fields.items() if other != name}))
    with pytest.raises(CollateralMalformedError, match=r"collateral: unknown member 'extra'"):
        parse_collateral(json.dumps({**fields, "extra": ""}))


@pytest.mark.parametrize("name", ["tcb_info_signature", "qe_identity_signature"])
def test_a_signature_has_64_bytes(collateral, name):
    """A signature of another length is refused."""
    fields = json.loads(serialise_collateral(collateral))
    with pytest.raises(CollateralMalformedError, match=rf"{name}: want 64 bytes, got 63"):
        parse_collateral(json.dumps({**fields, name: fields[name][2:]}))


@pytest.mark.parametrize("name", ["root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature"])
def test_hexadecimal_has_no_prefix(collateral, name):
    """Digits of either case are read, and a `0x` before them is refused: the quote library does not read it."""
    fields = json.loads(serialise_collateral(collateral))

    assert parse_collateral(json.dumps({**fields, name: fields[name].upper()})) == collateral
    for prefix in ("0x", "0X"):
        with pytest.raises(CollateralMalformedError, match=f"collateral: {name}: want hexadecimal without 0x"):
            parse_collateral(json.dumps({**fields, name: prefix + fields[name]}))


@pytest.mark.parametrize("text", ["", "null", "[]", '"text"', "{", '{"a":NaN}', b"\xff", "[" * 100_000])
def test_what_is_no_json_object_is_refused(text):
    """Other JSON, no JSON, and JSON nested without end are refused by our error."""
    with pytest.raises(CollateralMalformedError, match=r"collateral: "):
        parse_collateral(text)


def test_duplicate_names_are_refused_anywhere(collateral):
    """A repeated name is refused in the outer object and in both documents, at any depth."""
    outer = serialise_collateral(collateral)
    with pytest.raises(CollateralMalformedError, match=r"collateral: .*appears twice"):
        parse_collateral(outer[:-1] + ', "tcb_info": "{}"}')
    for text in (
        collateral.tcb_info[:-1] + ',"fmspc":"50806F000000"}',
        collateral.tcb_info.replace('"tcbStatus":"Revoked"', '"tcbStatus":"Revoked","tcbStatus":"UpToDate"'),
    ):
        with pytest.raises(CollateralMalformedError, match=r"TCB info: .*appears twice"):
            parse_tcb_info(text)
    with pytest.raises(CollateralMalformedError, match=r"QE identity: .*appears twice"):
        parse_qe_identity(collateral.qe_identity[:-1] + ',"isvprodid":2}')


def test_broken_documents_make_collateral_malformed(collateral):
    """Collateral whose documents cannot be read is refused when it is read, not when it is used."""
    for change in ({"tcb_info": "{}"}, {"qe_identity": "{}"}):
        with pytest.raises(CollateralMalformedError, match=r"(TCB info|QE identity)"):
            parse_collateral(serialise_collateral(replace(collateral, **change)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"fmspc":"50806F000000"', '"fmspc":"50806F0000"', "fmspc: want 6 bytes, got 5"),
        ('"pceId":"0000"', '"pceId":0', "pceId: want a string, got a number"),
        ('"tcbType":0', '"tcbType":false', "tcbType: want an integer, got a boolean"),
        ('"tcbType":0', '"tcbType":-1', "tcbType: want 0 to"),
        ('"version":3', '"version":"3"', "version: want an integer, got a string"),
        ('"issueDate":"2027-01-15T08:00:00Z"', '"issueDate":"2027-01-15"', "issueDate: want a time such as"),
        ('"issueDate":"2027-01-15T08:00:00Z"', '"issueDate":"2027-01-15T08:00:00"', "issueDate: want a time such as"),
        ('"tdxModule":{', '"tdxModul":{', "TCB info.tdxModule: want a JSON object, got null"),
        ('"pcesvn":13', '"pcesvn":65536', "pcesvn: want 0 to 65535"),
        ('[{"svn":3},', "[", "want 16 of them, got 15"),
        ('[{"svn":3},', '[{"svn":256},', "svn: want 0 to 255, got 256"),
        ('"tcbStatus":"Revoked"', '"tcbStatus":"revoked"', "tcbStatus: want one that Intel defines, got 'revoked'"),
        ('"advisoryIDs":["', '"advisoryIDs":[1,"', "advisoryIDs: want an array of strings"),
        ('"isvsvn":4', '"isvsvn":null', "isvsvn: want an integer, got null"),
        ('"id":"TDX_01","mrsigner":"00', '"id":"TDX_01","mrsigner":"', "mrsigner: want 48 bytes, got 47"),
        ('"isvsvn":4},"tcbDate":"', '"isvsvn":4},"tcbDate":"on ', "tcbDate: want a time such as"),
    ],
)
def test_tcb_info_fields_have_their_types(collateral, old, new, message):
    """A TCB info field of another type, length or range is refused by name."""
    assert old in collateral.tcb_info
    with pytest.raises(CollateralMalformedError, match=message):
        parse_tcb_info(collateral.tcb_info.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"miscselect":"00000000"', '"miscselect":"000000"', "miscselect: want 4 bytes, got 3"),
        ('"isvprodid":2', '"isvprodid":65536', "isvprodid: want 0 to 65535"),
        ('"mrsigner":"DC', '"mrsigner":"', "mrsigner: want 32 bytes, got 31"),
        ('"tcbLevels":[', '"tcbLevels":[0,', "tcbLevels.0.: want a JSON object, got a number"),
        ('"tcbLevels":[{', '"tcbLevels":{"a":{', "QE identity"),
    ],
)
def test_qe_identity_fields_have_their_types(collateral, old, new, message):
    """A QE identity field of another type, length or range is refused by name."""
    assert old in collateral.qe_identity
    with pytest.raises(CollateralMalformedError, match=message):
        parse_qe_identity(collateral.qe_identity.replace(old, new, 1))
