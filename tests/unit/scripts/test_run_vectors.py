"""The runner of golden data: it must see what is wrong, and must not let an answer reach a question."""

import hashlib
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from dstack.keys import certs
from dstack.keys.app_certs import CertificateWishes, build_app_leaf
from dstack.keys.pem import load_certificate, load_private_key
from dstack.values import AppId

Run = Callable[..., tuple[int, Any]]

GOLDEN_CASES = {
    "kms/certs": 2,
    "kms/csr": 8,
    "kms/env_encrypt": 8,
    "kms/env_pubkey": 3,
    "kms/kdf": 10,
    "kms/prpc": 5,
    "kms/report_data": 13,
    "kms/signature_chain": 5,
}


@pytest.fixture
def run(project_root: Path) -> Run:
    """Runs the program with --json; gives its exit code and what it printed."""

    def run(*arguments: object) -> tuple[int, Any]:
        command = [sys.executable, project_root / "scripts" / "run_vectors.py", *map(str, arguments), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stderr == ""
        return done.returncode, json.loads(done.stdout)

    return run


@pytest.fixture
def golden(project_root: Path, tmp_path: Path) -> Path:
    """A copy of the golden data that may be spoiled."""
    shutil.copytree(project_root / "tests" / "vectors" / "kms", tmp_path / "kms")
    return tmp_path


def _spoil(path: Path, change: Callable[[Any], object]) -> None:
    tree = json.loads(path.read_bytes())
    change(tree)
    path.write_text(json.dumps(tree))


def _kind(report: Any, kind: str) -> Any:
    return next(each for each in report["kinds"] if each["kind"] == kind)


def test_golden_data_pass_and_are_counted(run: Run, golden: Path) -> None:
    """Every case of every supported kind runs; a kind that is not supported is named and counted nowhere."""
    (golden / "kms" / "unheard_of.json").write_text("{}")

    code, report = run(golden)

    assert code == 0
    assert {each["kind"]: each["passed"] for each in report["kinds"]} == GOLDEN_CASES
    assert report["totals"] == {"cases": 54, "passed": 54, "failed": 0}
    assert report["unsupported"] == ["kms/unheard_of"]


def test_no_folder_is_nothing_to_run(project_root: Path, tmp_path: Path) -> None:
    """An absent folder gives one line and exit code 0."""
    command = [sys.executable, project_root / "scripts" / "run_vectors.py", tmp_path / "none"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, f"no golden data at {tmp_path / 'none'}: nothing to run\n")


def test_a_wrong_expectation_is_a_failure(run: Run, golden: Path) -> None:
    """The case, the member, what was expected and what came are told; the other cases still pass."""
    right = json.loads((golden / "kms" / "kdf.json").read_bytes())["cases"][4]["disk"]["disk_crypt_key"]
    _spoil(golden / "kms" / "kdf.json", lambda tree: tree["cases"][4]["disk"].update(disk_crypt_key="00"))

    code, report = run(golden)

    kind = _kind(report, "kms/kdf")
    failure = {"case": "cases[4]", "member": "disk.disk_crypt_key", "expected": '"00"', "got": f'"{right}"'}
    assert (code, kind["passed"], kind["failed"]) == (1, 9, 1)
    assert kind["failures"] == [failure, failure]


def test_a_changed_input_changes_the_result(run: Run, golden: Path) -> None:
    """What comes out follows from what goes in, and from nothing else in the file."""
    _spoil(golden / "kms" / "kdf.json", lambda tree: tree.update(root_ca_scalar="11" * 32))

    _, report = run(golden)

    assert _kind(report, "kms/kdf")["failed"] == 10


def test_what_is_absent_is_no_failure(run: Run, golden: Path) -> None:
    """Fewer cases, sections, and members of a case leave the rest to pass."""
    _spoil(golden / "kms" / "kdf.json", lambda tree: [tree["cases"].__delitem__(slice(1, None)), tree.pop("root_k256")])
    _spoil(golden / "kms" / "report_data.json", lambda tree: tree.pop("bootstrap"))
    _spoil(golden / "kms" / "prpc.json", lambda tree: tree["cases"][1].pop("response_protobuf"))

    code, report = run(golden)

    assert code == 0
    passed = {each["kind"]: each["passed"] for each in report["kinds"]}
    assert passed == {**GOLDEN_CASES, "kms/kdf": 2, "kms/report_data": 12}


@pytest.mark.parametrize("case", [{}, {"what": "else"}, {"app_id": "00"}, {"app_id": 1, "instance_id": None}])
def test_an_unknown_case_is_a_failure(run: Run, golden: Path, case: dict[str, object]) -> None:
    """A case without what is known, or with members that cannot be read, fails by itself."""
    _spoil(golden / "kms" / "kdf.json", lambda tree: tree["cases"].append(case))

    code, report = run(golden)

    kind = _kind(report, "kms/kdf")
    assert (code, kind["passed"], kind["failed"]) == (1, 10, 1)
    assert {each["case"] for each in kind["failures"]} == {"cases[9]"}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"other": []}', '{"cases": [1]}', "[" * 100_000])
def test_an_unknown_file_is_a_failure(run: Run, golden: Path, content: str) -> None:
    """A file that cannot be read, or has none of the known members, counts as one failed case."""
    (golden / "kms" / "kdf.json").write_text(content)

    code, report = run(golden)

    kind = _kind(report, "kms/kdf")
    assert (code, kind["cases"], kind["failed"]) == (1, 1, 1)
    assert kind["failures"][0]["expected"] == "a file of a known shape"


def test_a_refusal_that_does_not_come_is_a_failure(run: Run, golden: Path) -> None:
    """A negative case that can be computed after all is told with its result."""
    _spoil(golden / "kms" / "env_encrypt.json", lambda tree: tree["negative"].append(tree["cases"][2]))

    code, report = run(golden)

    assert code == 1
    assert [each["case"] for each in _kind(report, "kms/env_encrypt")["failures"]] == ["negative[2]"]


def test_members_that_nothing_uses_are_named(run: Run, golden: Path) -> None:
    """What was not compared is not hidden."""
    _spoil(golden / "kms" / "kdf.json", lambda tree: tree["cases"][0]["disk"].update(new="00"))

    _, report = run(golden)

    assert _kind(report, "kms/kdf")["not_compared"] == ["disk.new"]


def test_one_is_neither_true_nor_a_fraction(run: Run, golden: Path) -> None:
    """Values are compared with their types."""
    _spoil(golden / "kms" / "prpc.json", lambda tree: tree["cases"][0]["request_json"].update(api_version=True))

    code, report = run(golden)

    assert (code, _kind(report, "kms/prpc")["failed"]) == (1, 1)


# By protobuf's own rules: field and wire type, length, content.
MORE_METHODS = [
    {"method": "KMS.GetMeta", "request_json": None, "request_protobuf": ""},
    {"method": "GetTempCaCert", "request_json": {}, "request_protobuf": ""},
    {"method": "Onboard.Finish", "response_json": None, "response_protobuf": ""},
    {
        "method": "Admin.ClearImageCache",
        "request_json": {"image_hash": "all", "config_hash": ""},
        "request_protobuf": "0a03616c6c",
        "response_json": None,
    },
    {
        "method": "KMS.ClearImageCache",
        "request_json": {"token": "t", "image_hash": "aa", "config_hash": ""},
        "request_protobuf": "0a017412026161",
    },
    {
        "method": "Onboard.GetAttestationInfo",
        "response_json": {
            "device_id": "01",
            "mr_aggregated": "",
            "os_image_hash": "",
            "attestation_mode": "dstack-tdx",
            "site_name": "",
            "eth_rpc_url": "",
            "kms_contract_address": "",
            "ppid": "",
        },
        "response_protobuf": "0a0101220a64737461636b2d746478",
    },
]


def test_every_method_has_its_messages(run: Run, golden: Path) -> None:
    """Methods without argument or answer too, a method in the form of each service, a field under either name."""
    _spoil(golden / "kms" / "prpc.json", lambda tree: tree.update(cases=MORE_METHODS))

    code, report = run(golden)

    assert (code, _kind(report, "kms/prpc")["failures"]) == (0, [])
    assert _kind(report, "kms/prpc")["passed"] == len(MORE_METHODS)


def test_certificates_may_have_other_names(run: Run, golden: Path) -> None:
    """What the requester of a certificate chose is taken from the sample, and nothing else is."""
    tree = json.loads((golden / "kms" / "certs.json").read_bytes())
    keys = {name: load_private_key(pem) for name, pem in tree["keys"].items()}
    root, app_ca, rpc = (load_certificate(tree[name]) for name in ("root_ca", "app_ca", "rpc_unified_ext"))
    evidence = certs.certificate_payload(rpc, certs.OID_ATTESTATION)
    assert evidence is not None
    at = datetime(2026, 8, 21, 1, 2, 3, tzinfo=UTC)
    wishes = CertificateWishes("Org", "", (), False, False, ext_quote=False, not_before=86400)
    app_id = AppId.from_hex(tree["app_info"]["values"][0])

    def change(subject: str, key: str) -> None:
        extensions = [(certs.OID_ATTESTATION, evidence)]
        server = certs.build_rpc_cert(keys[key], root, keys["root_ca"], subject, extensions, at=at)
        leaf = build_app_leaf(keys["ra_client"].public_key(), app_ca, keys["app_ca"], app_id, wishes, at=at)
        pem = {
            "rpc_unified_ext": server.public_bytes(Encoding.PEM).decode(),
            "leaf": leaf.public_bytes(Encoding.PEM).decode(),
        }
        _spoil(golden / "kms" / "certs.json", lambda tree: tree.update(pem))
        _spoil(golden / "kms" / "certs.json", lambda tree: tree["keys"].update(leaf=tree["keys"]["ra_client"]))

    change("203.0.113.9", "rpc")
    assert _kind(run(golden)[1], "kms/certs")["failures"] == []
    change("kms.example.org", "ra_client")
    assert [each["member"] for each in _kind(run(golden)[1], "kms/certs")["failures"]] == ["rpc_unified_ext"]


def test_boot_infos_are_read_as_the_auth_server_reads_them(run: Run, tmp_path: Path) -> None:
    """Hexadecimal is filled up at the left, with and without `0x`; what cannot be a boot info fails."""
    told = {
        "mrAggregated": "0x01",
        "osImageHash": "2",
        "mrSystem": "",
        "appId": "0xA",
        "composeHash": "",
        "instanceId": "",
        "deviceId": "ff" * 32,
        "tcbStatus": "UpToDate",
        "advisoryIds": ["X"],
    }
    values = [10, 0, 0, int("ff" * 32, 16), 1, 0, 2, 9 * 32, 11 * 32]
    texts = [
        8,
        int.from_bytes(b"UpToDate".ljust(32, b"\0"), "big"),
        1,
        32,
        1,
        int.from_bytes(b"X".ljust(32, b"\0"), "big"),
    ]
    body = b"".join(word.to_bytes(32, "big") for word in (32, *values, *texts))
    case = {"boot_info_json": told, "isAppAllowed_calldata": "0x1e079198" + body.hex()}
    (tmp_path / "kms").mkdir()
    file = tmp_path / "kms" / "contracts.json"
    file.write_text(json.dumps({"boot_info": [case]}))
    assert _kind(run(tmp_path)[1], "kms/contracts")["failures"] == []

    for wrong in ({**told, "appId": "00" * 21}, {**told, "deviceId": "xy"}, {**told, "tcbStatus": 1}):
        file.write_text(json.dumps({"boot_info": [{**case, "boot_info_json": wrong}]}))
        assert _kind(run(tmp_path)[1], "kms/contracts")["failed"] == 1


def test_files_outside_the_folder_are_not_read(run: Run, tmp_path: Path) -> None:
    """A case that names a file elsewhere fails, though the file exists and has that hash."""
    (tmp_path / "guest").mkdir()
    (tmp_path / "outside.json").write_text("{}")
    case = {
        "file": "../outside.json",
        "compose_hash": hashlib.sha256(b"{}").hexdigest(),
    }
    (tmp_path / "guest" / "compose_hash.json").write_text(json.dumps({"cases": [case]}))

    code, report = run(tmp_path)

    assert code == 1
    assert "want a file below" in _kind(report, "guest/compose_hash")["failures"][0]["got"]


def test_lists_of_requests_run_whatever_their_client(run: Run, tmp_path: Path) -> None:
    """Each list of a file of requests is one client's; what would be read as protobuf is a failure."""
    (tmp_path / "guest").mkdir()
    request = {"method": "POST", "path": "/Version", "content_type": "application/json", "body": {}}
    golden = {"note": "-", "one_client": [request], "another": [request, {**request, "content_type": "text/plain"}]}
    (tmp_path / "guest" / "sdk_requests.json").write_text(json.dumps(golden))

    code, report = run(tmp_path)

    kind = _kind(report, "guest/sdk_requests")
    assert (code, kind["passed"], [each["case"] for each in kind["failures"]]) == (1, 2, ["another[1]"])


def test_a_file_about_one_case_may_have_a_list_instead(run: Run, tmp_path: Path) -> None:
    """Each case is counted by itself."""
    (tmp_path / "guest").mkdir()
    (tmp_path / "guest" / "log.bin").write_bytes(struct.pack("<II20xI", 1, 3, 16) + b"Spec ID Event03\0")
    case = {"file": "log.bin", "bytes_consumed": 48, "events": []}
    (tmp_path / "guest" / "ccel.json").write_text(json.dumps({"cases": [case, {**case, "bytes_consumed": 47}]}))

    code, report = run(tmp_path)

    kind = _kind(report, "guest/ccel")
    assert (code, kind["passed"], [each["case"] for each in kind["failures"]]) == (1, 1, ["cases[1]"])


def test_a_release_names_its_boot_sequence(run: Run, project_root: Path, tmp_path: Path) -> None:
    """Releases between those that changed it, too; and the version of the digests is a case's own."""
    (tmp_path / "guest").mkdir()
    golden = json.loads((project_root / "tests" / "vectors" / "measurement" / "rtmr3_offline.json").read_bytes())
    case = next(each for each in golden["cases"] if each["version"] == "0.5.7")
    cases = [{**case, "version": "0.5.9"}, {**case, "version": "0.5.3"}, {**case, "event_log_version": 2}]
    (tmp_path / "guest" / "rtmr3_offline.json").write_text(json.dumps({"cases": cases}))

    code, report = run(tmp_path)

    kind = _kind(report, "guest/rtmr3_offline")
    assert (code, kind["passed"]) == (1, 1)
    assert [(each["case"], each["member"]) for each in kind["failures"]] == [
        *(("cases[1]", "events"), ("cases[1]", "rtmr3"), ("cases[2]", "rtmr3")),
    ]


def test_a_list_of_an_image_names_its_files(run: Run, tmp_path: Path) -> None:
    """Another file behind a listed name is a failure, and so is another digest of the list."""
    (tmp_path / "vmm").mkdir()
    text = f"{hashlib.sha256(b'f').hexdigest()}  ovmf.fd\n"
    case = {"order": ["ovmf.fd"], "sha256sum_txt": text, "digest": hashlib.sha256(text.encode()).hexdigest()}
    wrong = {**case, "sha256sum_txt": f"{'00' * 32}  ovmf.fd\n"}
    golden = {"files_hex": {"ovmf.fd": "66"}, "cases": [case, {**case, "digest": "00" * 32}, wrong]}
    (tmp_path / "vmm" / "image_digest.json").write_text(json.dumps(golden))

    code, report = run(tmp_path)

    kind = _kind(report, "vmm/image_digest")
    assert (code, kind["passed"]) == (1, 1)
    assert {each["case"] for each in kind["failures"]} == {"cases[1]", "cases[2]"}


def test_the_table_tells_the_same(project_root: Path, golden: Path) -> None:
    """Counts per kind and in all, failures with both values, and what is not supported."""
    _spoil(golden / "kms" / "prpc.json", lambda tree: tree["cases"][3].update(error_text="Other"))
    (golden / "kms" / "unheard_of.json").write_text("{}")
    command = [sys.executable, project_root / "scripts" / "run_vectors.py", golden]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert lines[0].split() == ["kind", "cases", "passed", "failed"]
    assert ["kms/prpc", "5", "4", "1"] in [line.split() for line in lines]
    assert ["all", "54", "53", "1"] in [line.split() for line in lines]
    assert "FAILED kms/prpc cases[3] error_text" in lines
    assert lines[-1] == "kinds not supported yet, none of their cases counted: kms/unheard_of"


def test_everything_beside_the_checkout_passes(run: Run, shared_vectors: Path) -> None:
    """All golden data that are there, where they are there."""
    code, report = run(shared_vectors)

    assert [failure for each in report["kinds"] for failure in each["failures"]] == []
    assert code == 0
