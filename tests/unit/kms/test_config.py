"""Settings: what is taken, what is refused, and that each is documented."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from dstack.attestation.tcb import TcbStatus
from dstack.errors import ConfigError
from kms.config import load_settings, parse_settings, setting_names

MINIMAL = """
[core.attestation.urls]
collateral_dir = "/var/lib/collateral"
[core.auth_api.chain]
rpc_url = "https://user:secret@rpc.example/key"
kms_contract = "0x00000000000000000000000000000000000000aa"
"""


def with_line(section: str, line: str) -> str:
    """The minimal file with one more setting."""
    return f"{MINIMAL}\n[{section}]\n{line}\n" if section else f"{line}\n{MINIMAL}"


def test_minimal_file_has_safe_defaults() -> None:
    """What is not said is the strictest of what can be said."""
    settings = parse_settings(MINIMAL)

    assert settings.core.accepted_tcb_statuses == {TcbStatus.UP_TO_DATE}
    assert settings.core.attestation.root_ca.tdx is None
    assert settings.core.auth_api.chain.block_tag == "finalized"
    assert settings.core.enforce_self_authorization is True
    assert settings.core.image.verify is True


def test_settings_do_not_change() -> None:
    """A setting cannot be assigned to."""
    settings = parse_settings(MINIMAL)

    with pytest.raises(ValidationError, match="frozen"):
        settings.core.site_name = "elsewhere"


def test_file_of_upstream_is_taken() -> None:
    """The keys of an upstream file that have a meaning here are read."""
    settings = parse_settings(
        """
        log_level = "debug"
        [rpc]
        address = "127.0.0.1"
        port = 9201
        [rpc.tls]
        key = "/kms/certs/rpc.key"
        certs = "/kms/certs/rpc.crt"
        [rpc.tls.mutual]
        ca_certs = "/kms/certs/tmp-ca.crt"
        mandatory = false
        [core]
        cert_dir = "/kms/certs"
        site_name = "here"
        accepted_tcb_statuses = ["UpToDate", "SWHardeningNeeded"]
        accepted_tcb_statuses_until = 2027-06-30T00:00:00Z
        [core.image]
        verify = true
        [core.onboard]
        enabled = true
        auto_bootstrap_domain = ""
        address = "0.0.0.0"
        port = 9203
        """
        + MINIMAL
    )

    assert (settings.rpc.port, settings.core.onboard.port, settings.core.cert_dir) == (9201, 9203, Path("/kms/certs"))
    assert settings.core.accepted_tcb_statuses == {TcbStatus.UP_TO_DATE, TcbStatus.SW_HARDENING_NEEDED}


@pytest.mark.parametrize(
    ("section", "line", "message"),
    [
        ("", "log_levle = 'info'", "log_levle: unknown setting (did you mean log_level?)"),
        ("core.onboard", "adress = 'x'", "core.onboard.adress: unknown setting (did you mean core.onboard.address?)"),
        ("core", "zzz = 1", "core.zzz: unknown setting"),
        ("core", "pccs_url = 'x'", "core.pccs_url: not a setting of this KMS: its place is core.attestation.urls.pccs"),
        ("core.auth_api.webhook", "url = 'x'", "core.auth_api.webhook: not a setting of this KMS: the contracts are"),
        ("core.auth_api", "type = 'dev'", "core.auth_api.type: Input should be 'chain'"),
        ("core.image", "verify = false", "core.image.verify: Input should be True"),
        ("core", "enforce_self_authorization = false", "core.enforce_self_authorization: Input should be True"),
        ("rpc.tls.mutual", "mandatory = true", "rpc.tls.mutual.mandatory: Input should be False"),
        ("rpc", "port = '8000'", "rpc.port: Input should be a valid integer"),
        ("rpc", "port = 65536", "rpc.port: Input should be less than or equal to 65535"),
        ("rpc.tls", "key = '/other/rpc.key'", "rpc.tls.key: want /etc/kms/certs/rpc.key, or nothing"),
        ("core", "accepted_tcb_statuses = []", "core.accepted_tcb_statuses: "),
        ("core", "accepted_tcb_statuses = ['OutOfDate']", "need accepted_tcb_statuses_until, the time they end"),
        ("core", "accepted_tcb_statuses_until = 2027-06-30T00:00:00", "core.accepted_tcb_statuses_until: "),
        ("core", "accepted_tcb_statuses = ['Revoked']", "core.accepted_tcb_statuses: Revoked cannot be accepted"),
        ("core", "accepted_tcb_statuses = ['uptodate']", "core.accepted_tcb_statuses.0: Input should be 'UpToDate'"),
        ("core.attestation.root_ca", "tdx = 'root.der'", "needs insecure_allow_external_trust_anchors = true"),
    ],
)
def test_setting_is_refused(section: str, line: str, message: str) -> None:
    """A setting that is unknown, has no effect here, or would weaken the service is refused by its name."""
    with pytest.raises(ConfigError) as refused:
        parse_settings(with_line(section, line))

    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("https://user", "ftp://user", "core.auth_api.chain.rpc_url: want an http or https URL"),
        ("0x00000000000000000000000000000000000000aa", "0xaa", "kms_contract: want 0x and 40 hexadecimal digits"),
        ("0x00000000000000000000000000000000000000aa", "0x" + "0" * 40, "kms_contract: want 0x and 40 hexadecimal"),
        ("kms_contract", "# kms_contract", "core.auth_api.chain.kms_contract: want a value, got none"),
        ("[core.", "core.", "settings: want TOML"),
    ],
)
def test_needed_setting_is_wrong(old: str, new: str, message: str) -> None:
    """A value that is needed must be there and of its form; the message never repeats the URL."""
    with pytest.raises(ConfigError) as refused:
        parse_settings(MINIMAL.replace(old, new))

    assert message in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("spelling", ["'https://a.example/sgx/certification/v4'", "['https://a.example']"])
def test_collateral_comes_from_one_endpoint_or_several(spelling: str) -> None:
    """As upstream spells it, a text with the path of the API, or as a list."""
    settings = parse_settings(MINIMAL.replace("collateral_dir", f"pccs = {spelling}\ncollateral_dir"))

    assert settings.core.attestation.urls.pccs == ("https://a.example",)


def test_collateral_is_not_fetched_in_the_clear() -> None:
    """An endpoint elsewhere is https."""
    with pytest.raises(ConfigError, match=r"core\.attestation\.urls\.pccs: .*want https, or http to this machine"):
        parse_settings(MINIMAL.replace("collateral_dir", "pccs = 'http://pccs.example'\ncollateral_dir"))


def test_all_problems_are_named_at_once() -> None:
    """Whoever repairs a file sees everything that is wrong with it."""
    with pytest.raises(ConfigError) as refused:
        parse_settings("port = 1\n[rpc]\nport = -1\n")

    assert [part.split(":")[0] for part in str(refused.value).removeprefix("settings: ").split("; ")] == [
        "rpc.port",
        "core",
        "port",
    ]


def test_shown_url_hides_credentials() -> None:
    """What is shown of an RPC URL is its scheme and host."""
    assert parse_settings(MINIMAL).core.auth_api.chain.shown_rpc_url == "https://rpc.example"


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A settings file that is absent or not text is refused by its path."""
    (tmp_path / "binary.toml").write_bytes(b"\xff")

    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read: No such file"):
        load_settings(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match=r"binary\.toml: cannot be read: not UTF-8"):
        load_settings(tmp_path / "binary.toml")


def test_every_setting_is_documented(project_root: Path) -> None:
    """docs/settings-kms.md has a row for each setting there is, and for none that there is not."""
    rows = (project_root / "docs" / "settings-kms.md").read_text().splitlines()
    documented = [row.split("`")[1] for row in rows if row.startswith("| `")]

    assert documented == list(setting_names())
