"""Settings of the replicator: what is missing, unknown or dangerous is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from dstack.attestation.roots import INTEL_ROOTS
from dstack.attestation.verification_policy import STRICT
from dstack.errors import ConfigError
from replicator.config import ChainSettings, load_settings, parse_configure, parse_settings
from replicator.documents import Address
from tests.worlds import Site

MINIMAL = """
[files]
secure_file = "/data/secure-file"
receipts_dir = "/data/receipts"
[attestation]
collateral_dir = "/data/collateral"
"""
CHAIN = """
[chain]
rpc_url = "https://rpc.example"
kms_auth = "0x{}"
""".format("c1" * 20)


def test_defaults_trust_intel_and_up_to_date_platforms_only() -> None:
    """Without further settings only Intel's root and the status UpToDate are accepted, and only this host listens."""
    settings = parse_settings(MINIMAL.encode())

    assert settings.roots == INTEL_ROOTS
    assert settings.policy == STRICT
    assert settings.host == "127.0.0.1"
    assert settings.chain is None


def test_chain_is_read_at_finalized_blocks() -> None:
    """A chain table without a block tag asks at finalized blocks."""
    settings = parse_settings((MINIMAL + CHAIN).encode())

    assert settings.chain == ChainSettings("https://rpc.example", Address(b"\xc1" * 20), "finalized", None)


def test_chain_can_be_pinned_by_its_number() -> None:
    """A chain id in the settings is kept, for the start to compare."""
    settings = parse_settings((MINIMAL + CHAIN + "chain_id = 8453\n").encode())

    assert settings.chain == ChainSettings("https://rpc.example", Address(b"\xc1" * 20), "finalized", 8453)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "'secure_file' is missing"),
        (MINIMAL + "[debug]\n", "unknown table 'debug'"),
        (MINIMAL + "[http]\nproxy = 1\n", "http: unknown member 'proxy'"),
        (MINIMAL + "[http]\nport = 70000\n", "port: want 0 to 65535"),
        (MINIMAL + '[chain]\nrpc_url = "https://rpc.example"\n', "'kms_auth' is missing"),
        (MINIMAL + CHAIN.replace("c1c1", "c1", 1), "kms_auth: .*want 20 bytes, got 19"),
        (MINIMAL + CHAIN.replace("https", "file"), "rpc_url: want an http or https URL"),
        (MINIMAL + CHAIN + 'block_tag = "pending"\n', "block_tag: want one of"),
        (MINIMAL + 'accepted_tcb_statuses = ["Fine"]\n', "accepted_tcb_statuses: want some of"),
        (MINIMAL + 'accepted_tcb_statuses = ["Revoked"]\n', "Revoked cannot be accepted"),
        (MINIMAL + 'accepted_tcb_statuses = ["OutOfDate"]\n', "accepting OutOfDate: want the time at which that ends"),
        (MINIMAL + "accepted_tcb_statuses_until = 2027-01-15T08:00:00\n", "want a time with a zone"),
        (MINIMAL + 'root_ca = "/data/root.der"\n', "insecure_allow_external_trust_anchors = true"),
        ("not TOML", "want TOML"),
    ],
)
def test_bad_settings_are_refused(text: str, match: str) -> None:
    """Each bad setting is refused, and the error names it."""
    with pytest.raises(ConfigError, match=match):
        parse_settings(text.encode())


def test_external_root_needs_its_flag_and_is_known_as_simulated(tmp_path: Path, site: Site) -> None:
    """An external root replaces Intel's where it is explicitly allowed, and is marked as simulated."""
    (tmp_path / "root.der").write_bytes(site.pki.root_der)
    text = MINIMAL + f'root_ca = "{tmp_path}/root.der"\ninsecure_allow_external_trust_anchors = true\n'

    settings = parse_settings(text.encode())

    assert settings.roots == site.roots
    assert [root.simulated for root in settings.roots.roots] == [True]


def test_missing_file_is_reported(tmp_path: Path) -> None:
    """A settings file that is not there is an error of the settings."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path / "replicator.toml")


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b'{"rpc_url": "http://x"}', "'kms_auth' is missing"),
        (b'{"rpc_url": "http://x", "kms_auth": "00", "block_tag": "latest"}', "unknown member 'block_tag'"),
        (b"ETH_RPC_URL=http://x", "not JSON"),
    ],
)
def test_configure_takes_exactly_two_members(raw: bytes, match: str) -> None:
    """The body of /configure has the two known members and no others."""
    with pytest.raises(ConfigError, match=match):
        parse_configure(raw)
