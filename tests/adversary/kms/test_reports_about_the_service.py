"""Security reports about dstack's KMS (kms.md section 11) that concern its service, each by its number."""

from __future__ import annotations

import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from dstack.attestation.roots import INTEL_ROOTS
from dstack.errors import ConfigError, DstackError, InputError, KeyReleaseDeniedError, KeystoreError
from dstack.keys.pem import load_private_key
from dstack.transport.listener import Listener
from dstack.transport.tls import client_context, server_context
from kms.app import kms_app, onboard_app
from kms.authorization import SelfAuthorization
from kms.config import parse_settings
from kms.generation import generate_keys
from kms.image_cache import ImageCache
from kms.keystore import KeySet, Keystore, open_keystore
from kms.onboard import Onboarding
from kms.onboard_service import OnboardService
from kms.permission import PermissionWatch
from kms.release import KeyRelease
from kms.service import KmsService
from tests.unit.kms.conftest import APP_ID, AT, World, allow_kms, app_machine, client_identity, kms_machine
from tests.unit.kms.test_app import SETTINGS

SECRET_URL = "https://user:password@rpc.example:8545/api-key?token=1"
CHAIN = """
[core.auth_api.chain]
rpc_url = "https://rpc.example"
kms_contract = "0x00000000000000000000000000000000000000aa"
chain_id = 1
"""
MINIMAL = f"""
[core]
attestation.urls.collateral_dir = "."
{CHAIN}
"""


@pytest.fixture
def keystore(tmp_path: Path) -> Iterator[Keystore]:
    """An empty store."""
    with open_keystore(tmp_path / "certs") as store:
        yield store


@pytest.fixture
def onboarding(world: World, keystore: Keystore) -> Onboarding:
    """That of a KMS which the chain does not permit yet."""
    return Onboarding(keystore, world.machine, world.verifier, world.own, world.chain)


@pytest.fixture
def service(world: World) -> tuple[KeySet, KmsService]:
    """The service of a KMS that the chain permits."""
    allow_kms(world)
    keys = generate_keys("localhost", world.machine, at=AT)
    release = KeyRelease(keys.roots, world.own, world.verifier, world.chain)
    return keys, KmsService(keys, release, world.chain, None, simulated=False)


def test_reports_556_and_606_no_secret_is_an_argument() -> None:
    """The program takes a path and nothing else, so that nothing secret can be given where every process sees it."""
    said = subprocess.run([sys.executable, "-m", "kms", "--help"], capture_output=True, text=True, check=True).stdout

    assert sorted({word.strip(",") for word in said.split() if word.startswith("-")}) == [
        "--config",
        "--help",
        "-c",
        "-h",
    ]


def test_reports_556_and_606_keys_are_for_their_owner_only(
    world: World, keystore: Keystore, onboarding: Onboarding
) -> None:
    """Every file that bootstrap leaves has mode 0600, the folder 0700, and nothing half written lies beside them."""
    allow_kms(world)
    onboarding.bootstrap("kms.example", "request")

    folder = keystore.directory
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["../../certs", "/etc", "..", "aa/../..", "a" * 131])
def test_report_558_a_cache_key_is_no_path(tmp_path: Path, name: str) -> None:
    """Only hexadecimal names a part of the cache."""
    with pytest.raises(InputError, match=r"^invalid cache key$"):
        ImageCache(tmp_path, None).clear(image_hash=name, config_hash="")


def test_reports_561_and_619_the_temporary_authority_vouches_for_nobody(service: tuple[KeySet, KmsService]) -> None:
    """Anybody can sign a client certificate with its public key; without bound evidence it opens nothing."""
    keys, methods = service
    identities = {
        "none": None,
        "signed by the temporary CA": client_identity(None, keys.temp_ca),
        "with copied evidence": client_identity(
            app_machine(), keys.temp_ca, bound_to=load_private_key(keys.rpc.key_pem)
        ),
    }

    tls = server_context(keys.rpc, client_ca_pem=keys.temp_ca.certificate_pem)
    with Listener(kms_app(methods), tls=tls).running() as listener:
        url = f"https://localhost:{listener.port}/prpc"
        answers = {
            (name, method): httpx.post(
                f"{url}/{method}?json", verify=client_context(ca_pem=keys.root_ca_pem, identity=identity)
            )
            for name, identity in identities.items()
            for method in ("GetAppKey", "GetKmsKey")
        }

    assert {answer.status_code for answer in answers.values()} == {400}
    assert {answer.json()["rule"] for answer in answers.values()} == {"EVIDENCE_MISSING", "APPRAISAL"}


def test_report_563_a_simulated_root_is_only_trusted_by_two_settings_and_said(
    service: tuple[KeySet, KmsService],
) -> None:
    """The default is Intel's root; another needs its file and a flag named insecure, and shows in GetMeta."""
    assert not any(root.simulated for root in INTEL_ROOTS.roots)
    with pytest.raises(ConfigError, match=r"root_ca\.tdx needs insecure_allow_external_trust_anchors = true"):
        parse_settings(MINIMAL.replace("[core]\n", '[core]\nattestation.root_ca.tdx = "root.der"\n'))

    _, methods = service
    said = [replace(methods, simulated=simulated).get_meta(None, None).is_dev for simulated in (False, True)]  # type: ignore[arg-type]
    assert said == [False, True]


def test_report_564_an_env_key_does_not_tell_which_apps_exist(service: tuple[KeySet, KmsService], world: World) -> None:
    """The chain is not asked about the app, so the answer is alike for every id."""
    _, methods = service
    asked = len(world.chain.asked)

    answers = [methods.release.env_key(app_id, None, "request") for app_id in (APP_ID, APP_ID.__class__(bytes(20)))]

    assert len({answer.public_key for answer in answers}) == 2
    assert {boot.app_id for boot in world.chain.asked[asked:]} == {world.chain.asked[asked].app_id}
    assert world.chain.asked[asked].app_id != APP_ID


def test_report_568_no_url_is_told_beyond_its_host() -> None:
    """Credentials are in paths and queries too; what is shown is scheme, host and port."""
    settings = parse_settings(MINIMAL.replace("https://rpc.example", SECRET_URL))

    assert settings.core.auth_api.shown_rpc_url == "https://rpc.example:8545"
    assert not [word for word in ("password", "api-key", "token=1") if word in " ".join(settings.notices())]


@pytest.mark.parametrize(
    ("file", "what"),
    [
        (MINIMAL.replace("[core.auth_api.chain]", '[core.auth_api]\ntype = "dev"\n[core.auth_api.chain]'), "type"),
        (MINIMAL.replace("[core]\n", "[core]\nonboard.quote_enabled = false\n"), "quote_enabled"),
        (MINIMAL.replace("[core]\n", "[core]\nenforce_self_authorization = false\n"), "enforce_self_authorization"),
        (MINIMAL.replace("[core]\n", "[core]\nimage.verify = false\n"), "verify"),
        (MINIMAL.replace("[core]\n", "[core]\nadmin.insecure_no_auth = true\n"), "insecure_no_auth"),
    ],
)
def test_reports_608_and_609_there_is_no_switch_that_releases_keys_unattested(file: str, what: str) -> None:
    """Each of upstream's switches is refused by its name, not ignored."""
    parse_settings(MINIMAL)

    with pytest.raises(ConfigError, match=what):
        parse_settings(file)


def test_reports_610_and_611_bootstrap_is_once_and_permitted(
    world: World, keystore: Keystore, onboarding: Onboarding
) -> None:
    """It asks the chain first; of many at once one wins; nothing is ever overwritten."""
    with pytest.raises(KeyReleaseDeniedError, match=r"^KMS is not allowed to bootstrap: boot denied: "):
        onboarding.bootstrap("kms.example", "request")
    assert keystore.exists() is False

    allow_kms(world)
    outcomes: list[str] = []
    threads = [threading.Thread(target=lambda: outcomes.append(_bootstrap(onboarding))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == ["KMS has already been bootstrapped"] * 3 + ["made"]


def _bootstrap(onboarding: Onboarding) -> str:
    try:
        onboarding.bootstrap("kms.example", "request")
    except KeystoreError as exc:
        return str(exc)
    return "made"


def test_reports_610_and_611_finish_is_for_later(world: World, onboarding: Onboarding) -> None:
    """Before there are keys, `/finish` ends nothing."""
    ended: list[str] = []
    service = OnboardService(onboarding, world.own, SETTINGS, finish=lambda: ended.append("ended"))

    with Listener(onboard_app(service, PermissionWatch(world.own, world.chain))).running() as listener:
        answer = httpx.get(f"http://127.0.0.1:{listener.port}/finish")

    assert (answer.status_code, answer.json()["error"], ended) == (400, "KMS has not been bootstrapped yet", [])


def test_reports_610_and_611_the_open_service_is_on_loopback_by_default() -> None:
    """Before there are keys it is plain HTTP without a password, so it is reached from this machine only."""
    assert parse_settings(MINIMAL).core.onboard.address == "127.0.0.1"


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_reports_610_and_611_no_page_of_another_site_may_bootstrap(
    world: World, keystore: Keystore, onboarding: Onboarding, headers: dict[str, str]
) -> None:
    """A browser on the operator's machine, on a page of somebody else, is refused."""
    allow_kms(world)
    service = OnboardService(onboarding, world.own, SETTINGS, finish=lambda: None)

    with Listener(onboard_app(service, PermissionWatch(world.own, world.chain))).running() as listener:
        url = f"http://127.0.0.1:{listener.port}/prpc/Onboard.Bootstrap?json"
        answer = httpx.post(url, content='{"domain":"kms.example"}', headers=headers)

    assert (answer.status_code, answer.json()["error"]) == (400, "want no page of another site to ask this")
    assert keystore.exists() is False


@pytest.mark.parametrize(
    ("host", "is_own"),
    [
        ("127.0.0.1:8000", True),
        ("10.1.2.3", True),
        ("[::1]:8000", True),
        ("localhost:8000", True),
        ("LOCALHOST.", True),
        ("kms.example:8000", True),
        ("KMS.example.", True),
        ("evil.example:8000", False),
        ("127.0.0.1.evil.example", False),
        ("evil.kms.example", False),
        ("localhost.evil.example", False),
        ("evil.example@127.0.0.1", False),
        ("[::1]evil.example", False),
        ("", False),
    ],
)
def test_reports_610_and_611_no_name_of_others_leads_to_the_open_service(
    world: World, keystore: Keystore, onboarding: Onboarding, host: str, is_own: bool
) -> None:
    """A page whose own name leads here (DNS rebinding) is of the same site by every header, and refused by its name."""
    allow_kms(world)
    settings = parse_settings(MINIMAL + '\n[core.onboard]\nnames = ["Kms.example"]\n')
    service = OnboardService(onboarding, world.own, settings, finish=lambda: None)
    headers = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}

    with Listener(onboard_app(service, PermissionWatch(world.own, world.chain))).running() as listener:
        url = f"http://127.0.0.1:{listener.port}"
        looked = httpx.get(f"{url}/", headers=headers)
        answer = httpx.post(f"{url}/prpc/Onboard.Bootstrap?json", content='{"domain":"kms.example"}', headers=headers)

    assert (looked.status_code, answer.status_code) == ((200, 200) if is_own else (400, 400))
    assert keystore.exists() is is_own
    if not is_own:
        wanted = "want Host to be an IP address, localhost or a name in core.onboard.names"
        assert looked.json()["error"] == answer.json()["error"] == f"{wanted}, got {host!r}"


def test_roadmap_114_handovers_of_root_keys_are_logged(
    service: tuple[KeySet, KmsService], caplog: pytest.LogCaptureFixture
) -> None:
    """Each time root keys are asked for, the giving KMS writes who asked and by which block it decided."""
    keys, methods = service
    certificate = ssl.PEM_cert_to_DER_cert(client_identity(kms_machine(), keys.temp_ca).certificate_pem)

    with caplog.at_level("INFO", logger="kms.decisions"):
        methods.release.root_keys(certificate, "", "request")

    assert '"subject": "kms"' in caplog.messages[-1]
    assert '"decision": "granted"' in caplog.messages[-1]
    assert '"block": 77' in caplog.messages[-1]
    assert not [line for line in caplog.messages if keys.roots.files()["root-k256.key"].hex() in line]


def test_roadmap_115_decisions_rest_on_a_block_that_stays() -> None:
    """A finalized block, except on a chain for development, which is announced at every start."""
    assert parse_settings(MINIMAL).core.auth_api.chain.block_tag == "finalized"
    with pytest.raises(ConfigError, match="block_tag: want finalized, except on a development chain"):
        parse_settings(MINIMAL.replace("chain_id = 1", 'chain_id = 1\nblock_tag = "latest"'))

    latest = parse_settings(MINIMAL.replace("chain_id = 1", 'chain_id = 31337\nblock_tag = "latest"'))
    assert any(notice.startswith("NOT PRODUCTION: decisions rest on latest blocks") for notice in latest.notices())


def test_weakness_f_evidence_about_ourselves_is_not_kept_for_ever(world: World) -> None:
    """Upstream measures itself once; here that evidence is fetched and verified anew every few minutes."""
    own = SelfAuthorization(world.machine, world.verifier, world.chain)
    own.appraisal()
    own.appraisal()
    assert len(world.machine.asked) == 1

    world.clock.now = AT.replace(minute=AT.minute + 6)
    world.collateral.collateral = None
    with pytest.raises(DstackError, match="collateral: none for this platform"):
        own.appraisal()
