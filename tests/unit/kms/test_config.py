"""Settings: what is taken, what is refused, and that each is documented."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

from dstack.attestation.tcb import TcbStatus
from dstack.errors import ConfigError
from kms.chain_settings import Webhook
from kms.config import Settings, load_settings, parse_settings, setting_names
from kms.settings_form import setting_fields

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
    assert settings.core.auth_api.chain is not None
    assert settings.core.auth_api.chain.block_tag == "finalized"
    assert settings.core.enforce_self_authorization is True
    assert settings.core.image.verify is True


def test_settings_do_not_change() -> None:
    """A setting cannot be assigned to."""
    settings = parse_settings(MINIMAL)

    with pytest.raises(ValidationError, match="frozen"):
        settings.core.site_name = "elsewhere"


UPSTREAM_CORE = """
[core]
cert_dir = "/kms/certs"
subject_postfix = ".dstack"
pccs_url = "https://pccs.example/sgx/certification/v4"
admin_token_hash = ""
site_name = "here"
[core.image]
verify = true
cache_dir = "/kms/images"
download_url = "http://localhost:8000/mr_{OS_IMAGE_HASH}.tar.gz"
download_timeout = "2m"
[core.auth_api]
type = "webhook"
[core.auth_api.webhook]
url = "http://127.0.0.1:9200"
[core.auth_api.dev]
gateway_app_id = "any"
[core.onboard]
enabled = true
auto_bootstrap_domain = ""
quote_enabled = true
address = "0.0.0.0"
port = 9203
"""

UPSTREAM_057 = (
    """
[default]
workers = 8
max_blocking = 64
ident = "DStack KMS"
temp_dir = "/tmp"
keep_alive = 10
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
"""
    + UPSTREAM_CORE
)

UPSTREAM_HEAD = """
[rpc]
address = "127.0.0.1"
port = 9201
[core]
cert_dir = "/kms/certs"
enforce_self_authorization = true
attest_rpc_cert = true
sev_snp_key_release = false
aws_nitro_tpm_key_release = false
[core.attestation]
insecure_allow_external_trust_anchors = false
urls.pccs = "https://pccs.example"
urls.amd_kds = "https://kds.example"
[core.metrics]
enabled = true
[core.admin]
enabled = false
address = "127.0.0.1"
port = 8001
auth_token = ""
htpasswd_file = ""
insecure_no_auth = false
[core.auth_api]
type = "webhook"
webhook.url = "https://auth.example/"
"""


@pytest.mark.parametrize(("named", "meant"), [("trace", "debug"), ("warn", "warning"), ("error", "error")])
def test_levels_have_upstreams_names_too(named: str, meant: str) -> None:
    """What has no name of ours is the next level that has."""
    assert parse_settings(with_line("", f'log_level = "{named}"')).log_level == meant


def test_file_of_upstream_0_5_7_is_taken() -> None:
    """Its keys are read; the ones that do nothing here are said, each by name."""
    settings = parse_settings(UPSTREAM_057)
    core = settings.core

    assert (settings.log_level, settings.rpc.port, core.onboard.port) == ("debug", 9201, 9203)
    assert (core.cert_dir, core.pccs) == (Path("/kms/certs"), ("https://pccs.example/sgx/certification/v4",))
    assert (core.image.download_timeout, core.image.cache_dir) == (timedelta(minutes=2), Path("/kms/images"))
    assert core.auth_api.webhook == Webhook(url="http://127.0.0.1:9200")
    assert (core.auth_api.kms_contract, core.auth_api.shown_rpc_url) == ("", "")
    assert [notice.split(" has no effect: ")[0] for notice in settings.notices()] == [
        "workers",
        "max_blocking",
        "keep_alive",
        "ident",
        "temp_dir",
        "core.subject_postfix",
        "core.auth_api.dev.gateway_app_id",
        "core.onboard.quote_enabled",
        "core.image.acpi_tables is unset: no machine gets anything, this one included",
    ]


def test_file_of_upstream_head_is_taken() -> None:
    """Newer spellings mean the same."""
    settings = parse_settings(UPSTREAM_HEAD)

    assert settings.core.pccs == ("https://pccs.example",)
    assert settings.core.admin.htpasswd_file is None
    assert settings.notices() == (
        "core.attestation.urls.amd_kds has no effect: only TDX is verified",
        "core.image.acpi_tables is unset: no machine gets anything, this one included",
    )


@pytest.mark.parametrize("name", ["gcp_tpm", "aws_nitro_enclave", "aws_nitro_tpm", "sev_snp_milan", "sev_snp_turin"])
def test_roots_of_other_platforms_do_nothing(name: str) -> None:
    """Upstream's names are known, ask for the same consent as upstream's, and change nothing."""
    root = f'root_ca.{name} = "/roots/other.pem"'
    consented = UPSTREAM_HEAD.replace("anchors = false", f"anchors = true\n{root}")

    settings = parse_settings(consented)

    assert settings.core.attestation.root_ca.tdx is None
    assert f"core.attestation.root_ca.{name} has no effect: only TDX is verified" in settings.notices()
    with pytest.raises(ConfigError, match=f"root_ca.{name} needs insecure_allow_external_trust_anchors = true"):
        parse_settings(consented.replace("anchors = true", "anchors = false"))


def test_collateral_may_come_from_several_endpoints() -> None:
    """A list is asked in its order; what comes is kept beside the keys' folder unless said otherwise."""
    several = UPSTREAM_HEAD.replace('"https://pccs.example"', '["https://a.example", "https://b.example"]')
    core = parse_settings(several).core

    assert core.pccs == ("https://a.example", "https://b.example")
    assert core.collateral_dir == core.cert_dir.parent / "collateral"


def test_weaker_statuses_have_an_end() -> None:
    """Statuses beside UpToDate are taken together with the time they end."""
    lines = (
        "accepted_tcb_statuses = ['UpToDate', 'SWHardeningNeeded']\naccepted_tcb_statuses_until = 2027-06-30T00:00:00Z"
    )

    core = parse_settings(with_line("core", lines)).core

    assert core.accepted_tcb_statuses == {TcbStatus.UP_TO_DATE, TcbStatus.SW_HARDENING_NEEDED}
    assert core.accepted_tcb_statuses_until == datetime(2027, 6, 30, tzinfo=UTC)


def test_a_chain_that_could_lie_is_announced() -> None:
    """One endpoint, an endpoint without TLS, and blocks that may be undone are said at every start."""
    text = MINIMAL.replace("https://user:secret@rpc.example/key", "http://rpc.example")

    assert parse_settings(MINIMAL + "chain_id = 31337\nblock_tag = 'latest'").notices() == (
        "core.image.acpi_tables is unset: no machine gets anything, this one included",
        "NOT PRODUCTION: decisions rest on latest blocks of a development chain",
        "one chain endpoint is believed; set core.auth_api.chain.rpc_urls to three or more",
    )
    assert parse_settings(text).notices()[2] == "chain endpoint http://rpc.example: whoever is in between can lie"


def test_several_endpoints_must_agree() -> None:
    """More than half unless more is wanted; what leaves room for two answers is refused."""
    urls = MINIMAL.replace('rpc_url = "https://user:secret@rpc.example/key"', 'rpc_urls = ["https://a", "https://b"]')

    chain = parse_settings(urls).core.auth_api.chain
    assert chain is not None
    assert (chain.endpoints, chain.agreement, chain.shown_rpc_url) == (("https://a", "https://b"), None, "https://a")
    with pytest.raises(ConfigError, match="agreement of endpoints: want 2 to 2 of 2, got 1"):
        parse_settings(urls + "agreement = 1")
    with pytest.raises(ConfigError, match="want each at a host of its own, got https://a:8545 beside"):
        parse_settings(urls.replace("https://b", "https://a:8545/other-key"))
    with pytest.raises(ConfigError, match="want rpc_urls or rpc_url, got both"):
        parse_settings(urls + "rpc_url = 'https://c'")


def test_a_chain_of_value_has_limits_that_a_development_chain_has_not() -> None:
    """Age of a block and time it is kept: an hour and a second; on a development chain neither, unless set."""
    chain, development, limited = (
        parse_settings(MINIMAL + line).core.auth_api.chain
        for line in ("", "chain_id = 31337", "chain_id = 31337\nmax_block_age = '1m'\nblock_kept_for = '500ms'")
    )

    assert chain is not None
    assert development is not None
    assert limited is not None
    assert (chain.age_limit, chain.head_seconds) == (timedelta(hours=1), 1.0)
    assert (development.age_limit, development.head_seconds) == (None, 0.0)
    assert (limited.age_limit, limited.head_seconds) == (timedelta(minutes=1), 0.5)


def test_decisions_are_kept_beside_the_keys() -> None:
    """Without a setting the log is a file in cert_dir; a URL, which may hold a password, is not shown."""
    assert parse_settings(MINIMAL).core.database_url == "sqlite:////etc/kms/certs/decisions.sqlite3"
    url = "postgresql+psycopg://kms:hunter2@db/kms"
    settings = parse_settings(with_line("core.decisions", f"database_url = '{url}'"))

    assert settings.core.database_url == url
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize(
    ("section", "line", "message"),
    [
        ("", "log_levle = 'info'", "log_levle: unknown setting (did you mean log_level?)"),
        ("core.onboard", "adress = 'x'", "core.onboard.adress: unknown setting (did you mean core.onboard.address?)"),
        ("core", "zzz = 1", "core.zzz: unknown setting"),
        ("core", "pccs_url = 'x'", "core.pccs_url: want an http or https URL"),
        ("core", "attest_rpc_cert = false", "core.attest_rpc_cert: Input should be True"),
        ("core", "sev_snp_key_release = true", "core.sev_snp_key_release: Input should be False"),
        ("core", "admin_token_hash = 'secret'", "core.admin_token_hash: String should match pattern"),
        ("core.admin", "insecure_no_auth = true", "core.admin.insecure_no_auth: Input should be False"),
        ("core.auth_api.webhook", "url = 'http://elsewhere'", "core.auth_api.webhook.url: want https, or http to this"),
        ("core.auth_api", "type = 'dev'", "core.auth_api.type: want chain or webhook: there is no mode in which"),
        ("core.auth_api", "type = 'webhook'", "core.auth_api: type is webhook: want core.auth_api.webhook, got none"),
        ("core.onboard", "names = ['kms.example:8000']", "core.onboard.names.0: String should match pattern"),
        ("core.onboard", "quote_enabled = false", "core.onboard.quote_enabled: Input should be True"),
        ("core.image", "download_timeout = '2 min'", "core.image.download_timeout: want a time such as"),
        ("core.image", "download_url = 'https://x/image'", "core.image.download_url: want {OS_IMAGE_HASH} in it"),
        ("core.decisions", "database_url = 'mysql://x'", "core.decisions.database_url: want sqlite:///PATH or"),
        ("core.decisions", "retention = '1h'", "core.decisions.retention: want at least 1d"),
        ("core.limits", "requests_per_second = 0", "core.limits.requests_per_second: Input should be greater than 0"),
        ("core.limits", "connections_of_peer = 257", "connections_of_peer: Input should be less than or equal to 256"),
        ("core.limits", "connections_of_peer = 0", "connections_of_peer: Input should be greater than or equal to 1"),
        ("core.limits", "handshake = '2m'", "core.limits.handshake: want 1s to 1m"),
        ("default", "workers = 1\n[default.x]", "x: unknown setting"),
        ("default", "rpc = 1\n[rpc]", "file: rpc: want it once, got it in default and at the top"),
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
        ("kms_contract", "block_tag = 'latest'\nkms_contract", "block_tag: want finalized, except on a development"),
        ("kms_contract", "block_kept_for = '3s'\nkms_contract", "chain.block_kept_for: want at most 1s"),
        ("collateral_dir", "# collateral_dir", "core: attestation.urls: want collateral_dir or pccs, got neither"),
        ("[core.", "core.", "settings: want TOML"),
    ],
)
def test_needed_setting_is_wrong(old: str, new: str, message: str) -> None:
    """A value that is needed must be there and of its form; the message never repeats the URL."""
    with pytest.raises(ConfigError) as refused:
        parse_settings(MINIMAL.replace(old, new))

    assert message in str(refused.value)
    assert "secret" not in str(refused.value)


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
    """What is shown of an RPC URL is its scheme, host and port."""
    assert parse_settings(MINIMAL).core.auth_api.shown_rpc_url == "https://rpc.example"


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A settings file that is absent or not text is refused by its path."""
    (tmp_path / "binary.toml").write_bytes(b"\xff")

    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read: No such file"):
        load_settings(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match=r"binary\.toml: cannot be read: not UTF-8"):
        load_settings(tmp_path / "binary.toml")


def documented_settings(project_root: Path) -> dict[str, list[str]]:
    """The rows of docs/settings-kms.md: by name, the columns behind it."""
    rows = (project_root / "docs" / "settings-kms.md").read_text().splitlines()
    columns = [[column.strip() for column in row.strip("| ").split(" | ")] for row in rows if row.startswith("| `")]
    return {name.strip("`"): rest for name, *rest in columns}


def test_every_setting_is_documented(project_root: Path) -> None:
    """docs/settings-kms.md has a row for each setting there is, and for none that there is not, in the file's order."""
    documented = documented_settings(project_root)

    assert list(documented) == list(setting_names())
    assert {name for name, rest in documented.items() if len(rest) != 3 or "" in rest} == set()


def test_documented_defaults_are_the_defaults(project_root: Path) -> None:
    """A default in the documentation that stands in code marks is the one in the code, as TOML writes it."""
    documented = documented_settings(project_root)
    fields = dict(setting_fields(Settings))
    told = {name: rest[0].strip("`") for name, rest in documented.items() if rest[0].startswith("`")}

    assert told == {name: _toml(fields[name].default) for name in told}
    assert {
        name for name in set(fields) - set(told) if not documented[name][0].startswith(("none", "empty", "<"))
    } == set()


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, timedelta):
        seconds = int(value.total_seconds())
        return next(
            f"{seconds // size}{unit}" for unit, size in (("d", 86400), ("m", 60), ("s", 1)) if seconds % size == 0
        )
    if isinstance(value, frozenset):
        return "[" + ", ".join(f'"{member.value}"' for member in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)
