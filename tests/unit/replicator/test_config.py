"""Settings of the replicator: what is missing, unknown or dangerous is refused."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from dstack.attestation.roots import INTEL_ROOTS
from dstack.attestation.verification_policy import STRICT
from dstack.errors import ConfigError
from replicator.config import _KNOWN, ChainSettings, load_settings, parse_settings
from replicator.configure import parse_configure
from replicator.documents import Address, Law
from tests.worlds import Site

CHAIN = """
[chain]
rpc_urls = ["https://rpc.example", "https://other.example"]
operator = "0x{}"
kms_auth = "0x{}"
chain_id = 8453
""".format("0e" * 20, "c1" * 20)
MINIMAL = (
    CHAIN
    + """
[files]
secure_file = "/data/secure-file"
receipts_dir = "/data/receipts"
[attestation]
collateral_dir = "/data/collateral"
acpi_tables = "captured:/opt/acpi"
"""
)
LAW = Law(8453, Address(b"\x0e" * 20), Address(b"\xc1" * 20))
URLS = ("https://rpc.example", "https://other.example")


def test_defaults_trust_intel_and_up_to_date_platforms_only() -> None:
    """Without further settings only Intel's root and the status UpToDate are accepted, and only this host listens."""
    settings = parse_settings(MINIMAL.encode())

    assert settings.roots == INTEL_ROOTS
    assert settings.policy == STRICT
    assert settings.host == "127.0.0.1"
    assert settings.agent_socket is None
    assert (settings.old_forms, settings.containers) == (False, ())


@pytest.mark.parametrize(("line", "limit"), [("", 10000), ("max_receipts = 1", 1), ("max_receipts = 50000", 50000)])
def test_the_limit_of_receipts_is_a_setting(line: str, limit: int) -> None:
    """10000 unless the settings say otherwise."""
    text = MINIMAL.replace("[files]", f"[files]\n{line}")

    assert parse_settings(text.encode()).max_receipts == limit


@pytest.mark.parametrize("limit", ["0", "50001", "-1", '"many"'])
def test_no_limit_of_receipts_is_refused(limit: str) -> None:
    """It is neither none nor without end."""
    text = MINIMAL.replace("[files]", f"[files]\nmax_receipts = {limit}")

    with pytest.raises(ConfigError, match="max_receipts: want"):
        parse_settings(text.encode())


def test_collateral_is_fetched_only_where_the_settings_say() -> None:
    """Without endpoints the folder is all there is; an endpoint elsewhere is https."""
    assert parse_settings(MINIMAL.encode()).collateral_urls == ()
    text = MINIMAL + 'collateral_urls = ["https://a.example/sgx/certification/v4", "http://127.0.0.1:8081"]\n'
    assert parse_settings(text.encode()).collateral_urls == ("https://a.example", "http://127.0.0.1:8081")

    with pytest.raises(ConfigError, match="collateral endpoint: want https, or http to this machine"):
        parse_settings(text.replace("https://a", "http://a").encode())


def test_the_law_is_pinned_and_read_at_finalized_blocks() -> None:
    """Chain and contracts come from the file; blocks are finalized, and at most an hour old."""
    settings = parse_settings(MINIMAL.encode())

    assert settings.chain == ChainSettings(LAW, URLS, "finalized", None, timedelta(hours=1))


def test_endpoints_can_be_left_to_configure_only_explicitly() -> None:
    """A file without endpoints must say that whoever reaches the port may choose them."""
    open_one = MINIMAL.replace('rpc_urls = ["https://rpc.example", "https://other.example"]', "")

    assert parse_settings(
        open_one.replace("chain_id", "insecure_endpoints_from_configure = true\nchain_id").encode()
    ).chain == ChainSettings(LAW, endpoints_from_configure=True)
    with pytest.raises(ConfigError, match="want either rpc_urls or insecure_endpoints_from_configure"):
        parse_settings(open_one.encode())


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "'operator' is missing|'secure_file' is missing"),
        (MINIMAL + "[debug]\n", "unknown table 'debug'"),
        (MINIMAL + "[http]\nproxy = 1\n", "http: unknown setting 'proxy'$"),
        (MINIMAL + "[http]\nport = 70000\n", "port: want 0 to 65535"),
        (MINIMAL + "[http]\nconnections_of_peer = 0\n", "connections_of_peer: want 1 to 256, got 0"),
        (MINIMAL + "[http]\nconnections_of_peer = 257\n", "connections_of_peer: want 0 to 256, got 257"),
        (MINIMAL.replace("kms_auth", "kms"), "chain: unknown setting 'kms'"),
        (MINIMAL.replace("chain_id = 8453", ""), "'chain_id' is missing"),
        (MINIMAL.replace("c1c1", "c1", 1), "kms_auth: .*want 20 bytes, got 19"),
        (MINIMAL.replace("https://rpc", "file://rpc"), "rpc_urls: want http or https URLs"),
        (MINIMAL.replace("chain_id", 'block_tag = "pending"\nchain_id'), "block_tag: want one of"),
        (MINIMAL + 'accepted_tcb_statuses = ["Fine"]\n', "accepted_tcb_statuses: want some of"),
        (MINIMAL + 'accepted_tcb_statuses = ["Revoked"]\n', "Revoked cannot be accepted"),
        (
            MINIMAL + 'accepted_tcb_statuses = ["OutOfDate"]\n',
            "accepting OutOfDate: want the time at which that ends in accepted_tcb_statuses_until",
        ),
        (MINIMAL + "accepted_tcb_statuses_until = 2027-01-15T08:00:00\n", "want a time with a zone"),
        (MINIMAL + 'root_ca = "/data/root.der"\n', "insecure_allow_external_trust_anchors = true"),
        (
            MINIMAL.replace('acpi_tables = "captured:/opt/acpi"\n', ""),
            "acpi_tables: want captured:PATH, or require_listed",
        ),
        (MINIMAL.replace("captured:/opt/acpi", "captured:acpi"), "acpi_tables: want captured:PATH with a whole path"),
        (MINIMAL.replace("captured:/opt/acpi", "own-qemu"), "acpi_tables: want captured:PATH with a whole path"),
        (
            MINIMAL.replace(
                'rpc_urls = ["https://rpc.example", "https://other.example"]',
                "insecure_endpoints_from_configure = true",
            ).replace("receipts_dir", 'bootstrap_request = "/inbox/bootstrap"\nreceipts_dir'),
            "bootstrap_request: want chain.rpc_urls beside it",
        ),
        (MINIMAL + '[[getkey.containers]]\nname = "web"\n', "container web: want either socket or token_file"),
        (MINIMAL + '[[getkey.containers]]\nname = "../x"\nsocket = "/s"\n', "name: want 1 to 63 of"),
        (MINIMAL + '[[getkey.containers]]\nname = "web"\ntoken_file = "/nothing"\n', "cannot be read"),
        (MINIMAL + '[[getkey.containers]]\nname = "a"\nsocket = "/s"\n' * 2, "want each name once"),
        ("not TOML", "want TOML"),
    ],
)
def test_bad_settings_are_refused(text: str, match: str) -> None:
    """Each bad setting is refused, and the error names it."""
    with pytest.raises(ConfigError, match=match):
        parse_settings(text.encode())


def test_every_setting_has_a_row(project_root: Path) -> None:
    """docs/settings-replicator.md names each setting there is, and none that there is not."""
    page = (project_root / "docs" / "settings-replicator.md").read_text()
    rows = re.findall(r"^\| ((?:`[a-z]+\.[a-z_]+`(?:, )?)+) \|", page, re.MULTILINE)
    documented = [name for row in rows for name in re.findall(r"`(.+?)`", row)]

    assert sorted(documented) == sorted(f"{table}.{name}" for table, names in _KNOWN.items() for name in names)


def test_what_is_wrong_is_said_with_file_and_meant_setting(tmp_path: Path) -> None:
    """A slip of the pen is found without a look at the manual."""
    (tmp_path / "slip.toml").write_text(MINIMAL.replace("secure_file", "secure_fil"))

    with pytest.raises(ConfigError) as raised:
        load_settings(tmp_path / "slip.toml")

    assert str(raised.value) == (
        f"{tmp_path}/slip.toml: files: unknown setting 'secure_fil' (did you mean secure_file?)"
    )


def test_acpi_tables_are_known_or_the_chain_lists_registers() -> None:
    """A source, or the exact registers by the chain's word; what a machine says of itself only explicitly."""
    listed = MINIMAL.replace('acpi_tables = "captured:/opt/acpi"', "require_listed_registers = true")

    assert parse_settings(MINIMAL.encode()).acpi_tables == "captured:/opt/acpi"
    assert parse_settings(MINIMAL.replace("captured:/opt/acpi", "from-log").encode()).acpi_tables == "from-log"
    assert (parse_settings(listed.encode()).acpi_tables, parse_settings(listed.encode()).chain) == (
        "",
        ChainSettings(LAW, URLS, "finalized", None, timedelta(hours=1), require_listed_registers=True),
    )


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


def test_configure_takes_endpoints_in_both_forms() -> None:
    """A JSON object with `rpc_urls`, or the old line where old forms are taken."""
    assert parse_configure(b'{"rpc_urls": ["http://x:1"]}', old_forms=False) == ("http://x:1",)
    assert parse_configure(b"ETH_RPC_URL=http://x:1?key=a=b\n", old_forms=True) == ("http://x:1?key=a=b",)
