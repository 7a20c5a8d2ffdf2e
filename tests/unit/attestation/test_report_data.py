"""Report data: tags, hashes and padding."""

from __future__ import annotations

import json

import pytest

from dstack.attestation.report_data import (
    app_key_report_data,
    bootstrap_report_data,
    padded_report_data,
    ratls_report_data,
    report_data,
)
from dstack.errors import InputError

# Values of "app-data" over the bytes "abc", from the golden data (kms/report_data.json).
ABC = {
    "sha256": "57bae068e8d01abcef4300b1b2d11d074a7a185ebab8df8f268a41fd120ff5cc" + "00" * 32,
    "sha384": "b92ede49637f0816c3c6f35360240563b3cb780d835946e779f4d548470eb2b56154c53931a69947ef1412bf9664cc71"
    + "00" * 16,
    "sha512": "85991484123ef987135265fdb75f2d72af0156348f5a92ca9d46c54dd759f889"
    "19ce8b47bfc8e35311634385838a5ed457856cea13bcd747e01680a2a120c83c",
    "sha3-256": "70ecbb17b7589d4fcd2f7c4dfefc2f71e994fab599f03093062a6ea7e7b4966b" + "00" * 32,
    "keccak256": "4c9d1053ae3b058e7e844c10a6aa545b253b4331ebc6a8f580a42331c2b601f3" + "00" * 32,
}


@pytest.mark.parametrize("name", ABC)
def test_hash_names_mean_what_upstream_means(name):
    """Each hash of tag, colon and content gives upstream's 64 bytes, zero-padded."""
    assert report_data("app-data", b"abc", name).hex() == ABC[name]


def test_sha512_is_the_default():
    """Without a hash name SHA-512 is used."""
    assert report_data("app-data", b"abc").hex() == ABC["sha512"]


def test_golden_report_data(shared_vectors):
    """All cases of the golden data hold, for every hash name, RA-TLS and the bootstrap quote."""
    guest = json.loads((shared_vectors / "guest" / "report_data.json").read_text())
    kms = json.loads((shared_vectors / "kms" / "report_data.json").read_text())

    for case in guest["cases"]:
        got = report_data(case["prefix"], bytes.fromhex(case["content"]), case["hash_algorithm"])
        assert got.hex() == case["report_data"], case
    for case in kms["ra_tls"]:
        assert report_data(case["tag"], bytes.fromhex(case["content"])).hex() == case["report_data"]
    bootstrap = kms["bootstrap"]
    keys = (bytes.fromhex(bootstrap[name]) for name in ("ca_pubkey", "k256_pubkey"))
    assert bootstrap_report_data(*keys).hex() == bootstrap["report_data"]


def test_raw_content_is_the_report_data():
    """With `raw`, 64 bytes of content are used as they are."""
    assert report_data("ignored", bytes(range(64)), "raw") == bytes(range(64))


def test_raw_content_of_another_length_is_refused():
    """With `raw`, content that is not 64 bytes is refused, never padded."""
    with pytest.raises(InputError, match="ReportData: want 64 bytes, got 63"):
        report_data("ignored", bytes(63), "raw")


def test_an_unknown_hash_name_is_refused():
    """A hash name that is not listed is refused, also one that Python would know."""
    with pytest.raises(InputError, match=r"report data: want one of sha256.*got 'md5'"):
        report_data("app-data", b"", "md5")


def test_the_tag_separates_domains():
    """The same content under two tags gives two values: an app cannot bind a TLS key by accident."""
    assert ratls_report_data(b"key") == report_data("ratls-cert", b"key")
    assert ratls_report_data(b"key") != report_data("app-data", b"key")


def test_padding_refuses_what_does_not_fit():
    """Unhashed report data of up to 64 bytes is padded with zeros, longer is refused."""
    assert padded_report_data(b"\x12\x34") == b"\x12\x34" + bytes(62)
    with pytest.raises(InputError, match="want 64 bytes, got 65"):
        padded_report_data(bytes(65))


def test_app_keys_are_named_as_upstream_names_them():
    """A label of the algorithm and the key in URL-safe base64, padded with zeros: the golden data's two."""
    ed25519 = bytes.fromhex("e4f6eb7b50267f586ba765766db7ca9487f1a506f6a49026ae09a1c605681bdb")
    secp256k1 = bytes.fromhex("03ab7f25d56455d300a1c1f77f57f6d16193e89cdd9edc5c5e2994b446b1f3373d")
    assert app_key_report_data("ed25519", ed25519) == (
        b"dip1::ed25519-pk:5Pbre1Amf1hrp2V2bbfKlIfxpQb2pJAmrgmhxgVoG9s".ljust(64, b"\0")
    )
    assert app_key_report_data("secp256k1", secp256k1) == (
        b"dip1::secp256k1c-pk:A6t_JdVkVdMAocH3f1f20WGT6JzdntxcXimUtEax8zc9".ljust(64, b"\0")
    )


@pytest.mark.parametrize(
    ("algorithm", "size", "said"),
    [
        ("rsa", 32, "want one of ed25519, secp256k1, got 'rsa'"),
        ("ed25519", 33, "want 32 bytes, got 33"),
        ("secp256k1", 65, "want 33 bytes, got 65"),
    ],
)
def test_what_is_no_app_key_is_refused(algorithm, size, said):
    """Another algorithm, or an uncompressed key."""
    with pytest.raises(InputError, match=said):
        app_key_report_data(algorithm, bytes(size))
