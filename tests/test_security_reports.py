"""What was reported about upstream's KMS and guests, what ours does about it, and the tests that show it.

Rows are those of kms.md section 11: reports by their number in upstream's tracker, the findings of its third-party
audit, and weaknesses seen in its source. A row whose test is gone, renamed or not collected fails here; so does a test
that is named after a report and stands in no row.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ABOUT_KEYS = "tests/adversary/kms/test_reports_about_keys.py"
ABOUT_EVIDENCE = "tests/adversary/kms/test_reports_about_evidence.py"
ABOUT_SERVICE = "tests/adversary/kms/test_reports_about_the_service.py"
ABOUT_GUESTS = "tests/adversary/kms/test_reports_about_guests.py"


@dataclass(frozen=True)
class Row:
    """One report.

    Attributes:
        report: `#549`, `roadmap #114`, `audit 0a` or `weakness (a)`.
        ours: What our code does about it.
        tests: Node ids, without parameters, of the tests that show it.
        elsewhere: What of it concerns no code of this repository; needed where there are no tests.
    """

    report: str
    ours: str
    tests: tuple[str, ...] = ()
    elsewhere: str = ""


REGISTER = (
    Row(
        "#549",
        "bytes of the derivation are upstream's; ids of any other length than theirs lead to no key",
        (
            f"{ABOUT_KEYS}::test_report_549_ids_of_another_length_get_no_keys",
            f"{ABOUT_KEYS}::test_report_549_an_instance_without_id_shares_its_disk_key_by_choice",
            "tests/unit/kms/test_app.py::test_app_id_of_another_length_is_refused",
        ),
    ),
    Row(
        "#550",
        "a compose file is hashed as it came",
        (
            f"{ABOUT_KEYS}::test_report_550_a_compose_file_is_hashed_as_it_came",
            "tests/unit/measurement/test_compose.py::test_hash_and_app_id_are_those_of_the_golden_data",
        ),
    ),
    Row(
        "#551",
        "scripts in a compose file are part of the compose hash",
        (f"{ABOUT_KEYS}::test_report_551_scripts_of_a_compose_file_are_measured",),
        elsewhere="there is no dashboard here that would show them",
    ),
    Row(
        "#552",
        "epoch 0 is upstream's scheme; the contract can begin others, with other keys",
        (
            f"{ABOUT_KEYS}::test_report_552_keys_have_a_version",
            "tests/unit/kms/test_key_epochs.py::test_both_epochs_are_served_inside_the_window",
            "tests/integration/test_key_rotation.py::test_owners_rotate_and_a_running_kms_follows",
        ),
    ),
    Row(
        "#553",
        "the 138 bytes that are hashed are built by hand",
        (f"{ABOUT_KEYS}::test_report_553_a_secret_does_not_depend_on_an_encoder",),
    ),
    Row(
        "#554",
        "what is signed has one reading: other lengths are refused before signing and verifying",
        (
            f"{ABOUT_KEYS}::test_report_554_signed_messages_cannot_be_read_two_ways",
            "tests/unit/keys/test_signature_chain.py::test_keys_of_other_lengths_are_not_signed",
            "tests/unit/keys/test_signature_chain.py::test_a_timestamp_has_eight_bytes",
            "tests/unit/keys/test_signature_chain.py::test_an_env_key_verifies_only_as_it_was_signed",
        ),
    ),
    *(
        Row(
            report,
            "no secret is an argument; files with secrets are their owner's alone and replaced whole",
            (
                f"{ABOUT_SERVICE}::test_reports_556_and_606_no_secret_is_an_argument",
                f"{ABOUT_SERVICE}::test_reports_556_and_606_keys_are_for_their_owner_only",
                "tests/unit/transport/test_private_file.py::test_replace_takes_away_the_readability_of_the_old_file",
                "tests/integration/test_guest_kms.py::test_allowed_guest_gets_the_keys_of_its_app_and_instance",
                "tests/unit/guest/test_boot.py::test_the_environment_is_decrypted_for_the_app",
            ),
            elsewhere="no disk is encrypted here, so no passphrase is handed to a tool for it",
        )
        for report in ("#556", "#606")
    ),
    Row(
        "#558",
        "a cache key is hexadecimal; names in an archive or a list of an image are no paths",
        (
            f"{ABOUT_SERVICE}::test_report_558_a_cache_key_is_no_path",
            "tests/unit/kms/test_image_cache.py::test_names_that_are_paths_are_refused",
            "tests/unit/kms/test_image_download.py::test_anything_but_plain_files_is_refused",
        ),
    ),
    Row(
        "#559",
        "a zero MRCONFIGID pins nothing; any other must fit the app (docs/verification-steps.md, step 18)",
        (f"{ABOUT_EVIDENCE}::test_report_559_an_unused_configuration_register_matches_nothing",),
    ),
    Row(
        "#560",
        "tokens and passwords are compared in constant time, by their digests",
        (
            f"{ABOUT_KEYS}::test_report_560_secrets_are_compared_in_constant_time",
            "tests/unit/kms/test_admin.py::test_nobody_else_is",
        ),
    ),
    *(
        Row(
            report,
            "a certificate under the temporary CA proves nothing; evidence bound to its key is asked for",
            (
                f"{ABOUT_SERVICE}::test_reports_561_and_619_the_temporary_authority_vouches_for_nobody",
                "tests/unit/kms/test_methods.py::test_kms_key_without_a_certificate_is_refused",
                "tests/unit/kms/test_error_table.py::test_evidence_of_another_key_or_a_debug_machine_is_refused",
            ),
        )
        for report in ("#561", "#619")
    ),
    Row(
        "#563",
        "the simulator is another program; its root is trusted by two settings only, and said wherever it counts",
        (
            f"{ABOUT_GUESTS}::test_report_563_no_program_of_production_holds_a_simulator",
            f"{ABOUT_SERVICE}::test_report_563_a_simulated_root_is_only_trusted_by_two_settings_and_said",
            f"{ABOUT_EVIDENCE}::test_report_563_a_foreign_simulator_is_no_platform",
        ),
    ),
    Row(
        "#564",
        "an env key tells nothing of which apps exist; strangers may ask so often",
        (
            f"{ABOUT_SERVICE}::test_report_564_an_env_key_does_not_tell_which_apps_exist",
            "tests/unit/kms/test_rate.py::test_a_request_over_the_limit_is_refused_unread",
        ),
    ),
    *(
        Row(
            report,
            "lengths are bounded by what came: 16 KiB inflated, 10 MiB of evidence, counts by the bytes left",
            (
                f"{ABOUT_EVIDENCE}::test_reports_566_and_567_lengths_are_bounded_by_what_came",
                "tests/unit/attestation/test_envelope.py::test_a_compressed_log_is_bounded",
                "tests/unit/transport/test_server.py::test_oversized_body_is_refused",
            ),
        )
        for report in ("#566", "#567")
    ),
    Row(
        "#568",
        "of a URL scheme, host and port are shown",
        (
            f"{ABOUT_SERVICE}::test_report_568_no_url_is_told_beyond_its_host",
            "tests/unit/kms/decision_log/test_log.py::test_errors_do_not_show_the_password",
        ),
    ),
    Row(
        "#605",
        "kept, because keys in use depend on it; SECURITY.md says to take two paths",
        (
            f"{ABOUT_KEYS}::test_report_605_one_path_is_one_key_for_both_algorithms",
            f"{ABOUT_GUESTS}::test_report_605_it_is_written_down_that_one_path_is_one_key",
        ),
    ),
    Row(
        "#607",
        "`any` is told to apps in development only",
        (f"{ABOUT_SERVICE.replace('the_service', 'keys')}::test_report_607_a_gateway_of_anybody_is_none",),
    ),
    *(
        Row(
            report,
            "no setting allows everything, or releases keys without evidence; each of upstream's is refused by name",
            (f"{ABOUT_SERVICE}::test_reports_608_and_609_there_is_no_switch_that_releases_keys_unattested",),
        )
        for report in ("#608", "#609")
    ),
    *(
        Row(
            report,
            "bootstrap asks the chain, happens once, and is for this machine's operator; finish needs keys",
            (
                f"{ABOUT_SERVICE}::test_reports_610_and_611_bootstrap_is_once_and_permitted",
                f"{ABOUT_SERVICE}::test_reports_610_and_611_finish_is_for_later",
                f"{ABOUT_SERVICE}::test_reports_610_and_611_the_open_service_is_on_loopback_by_default",
                f"{ABOUT_SERVICE}::test_reports_610_and_611_no_page_of_another_site_may_bootstrap",
                f"{ABOUT_SERVICE}::test_reports_610_and_611_no_name_of_others_leads_to_the_open_service",
                "tests/unit/kms/test_onboard.py::test_simultaneous_bootstraps_make_one_set_of_keys",
            ),
        )
        for report in ("#610", "#611")
    ),
    Row(
        "#612",
        "what a certificate of ours says of a machine comes from evidence that was verified for it",
        (f"{ABOUT_EVIDENCE}::test_report_612_the_machine_a_certificate_names_is_that_of_verified_evidence",),
        elsewhere="there is no gateway here that would read it",
    ),
    Row(
        "#613",
        "certificates last as upstream's; their evidence is verified at every request",
        (f"{ABOUT_KEYS}::test_report_613_long_certificates_do_not_outlive_their_evidence",),
    ),
    *(
        Row(
            report,
            "what a host or a mirror gives is compared with what was measured; without a TD there is nothing to show; "
            "keys leave no trace",
            (
                f"{ABOUT_EVIDENCE}::test_reports_614_to_618_what_a_host_states_is_only_transport",
                "tests/unit/kms/test_image_cache.py::test_other_images_are_refused_and_leave_nothing",
                "tests/unit/kms/test_app.py::test_app_key_without_a_certificate_is_refused",
                "tests/unit/vmm/test_qemu.py::test_the_machine_is_a_td_bound_to_what_it_should_be",
                "tests/unit/guest/test_boot.py::test_secrets_do_not_show",
                "tests/system/test_demo.py::test_no_key_is_left_in_the_results",
            ),
        )
        for report in ("#614", "#615", "#616", "#617", "#618")
    ),
    Row(
        "roadmap #114",
        "both sides of a handover of root keys log it, by the block it was decided at",
        (
            f"{ABOUT_SERVICE}::test_roadmap_114_handovers_of_root_keys_are_logged",
            "tests/unit/kms/decision_log/test_log.py::test_a_grant_is_written_before_it_is_given",
        ),
    ),
    Row(
        "roadmap #115",
        "finalized blocks of a limited age; more than half of several endpoints must agree",
        (
            f"{ABOUT_SERVICE}::test_roadmap_115_decisions_rest_on_a_block_that_stays",
            "tests/unit/kms/test_config.py::test_several_endpoints_must_agree",
            "tests/unit/kms/test_config.py::test_a_chain_of_value_has_limits_that_a_development_chain_has_not",
        ),
    ),
    Row(
        "audit 00",
        "other firmware has another MRTD; the tables that a host gives it are known, or nothing is granted",
        (
            "tests/unit/kms/test_image_measurements.py::test_machine_that_runs_another_is_refused",
            "tests/unit/kms/test_acpi_tables.py::test_unset_nobody_gets_anything",
            "tests/unit/kms/test_acpi_tables.py::test_other_tables_get_nothing",
        ),
        elsewhere="no firmware is built here",
    ),
    Row(
        "audit 01",
        "",
        elsewhere="terminal programs in the OS image: no OS image is built here, one is taken by its hash",
    ),
    Row(
        "audit 02",
        "files that a host shares are opened without following links",
        (
            "tests/unit/guest/test_host_shared.py::test_links_are_refused",
            "tests/unit/guest/test_host_shared.py::test_pipes_do_not_hang_a_boot",
            "tests/unit/transport/test_collateral.py::test_a_link_in_the_inbox_of_the_host_is_not_followed",
        ),
    ),
    Row(
        "audit 03",
        "only variables that the measured compose file lists are set; an app that demands a launch token does not boot",
        (
            f"{ABOUT_GUESTS}::test_audit_03_an_app_that_demands_a_launch_token_does_not_boot_without",
            "tests/unit/guest/test_boot.py::test_the_environment_is_decrypted_for_the_app",
            "tests/unit/guest/test_boot.py::test_an_environment_without_a_kms_is_refused",
        ),
    ),
    Row(
        "audit 04",
        "code before the launch is in the compose hash, and without the chain's yes to that there are no keys",
        (
            f"{ABOUT_GUESTS}::test_audit_04_another_script_before_the_launch_is_another_app_and_gets_no_keys",
            f"{ABOUT_KEYS}::test_report_551_scripts_of_a_compose_file_are_measured",
        ),
    ),
    Row(
        "audit 05",
        "our QEMU command line has no channel for QEMU's agent",
        (f"{ABOUT_GUESTS}::test_audit_05_a_host_has_no_channel_of_commands_into_its_guest",),
        elsewhere="what an OS image holds: none is built here",
    ),
    Row(
        "audit 06",
        "every attribute that is not for production is refused, reserved ones and a clear SEPT_VE_DISABLE too",
        (
            f"{ABOUT_EVIDENCE}::test_audit_06_every_attribute_that_is_not_for_production_is_refused",
            "tests/adversary/test_debug_td.py::test_a_td_that_can_be_debugged_is_refused",
        ),
    ),
    Row(
        "audit 07",
        "images without a digest are named in a warning; `dstack compose --require-digests` refuses them",
        (
            "tests/unit/cli/test_compose.py::test_an_image_that_can_change_is_told",
            "tests/unit/cli/test_compose.py::test_an_image_that_can_change_is_refused_where_digests_are_required",
        ),
    ),
    Row(
        "audit 08",
        "logs are private unless the measured compose file says otherwise",
        (f"{ABOUT_GUESTS}::test_audit_08_nobody_reads_an_apps_logs_by_default",),
        elsewhere="there is no service here that shows logs",
    ),
    Row(
        "audit 09",
        "what a host states without its being measured changes nothing that is measured or granted",
        (
            f"{ABOUT_GUESTS}::test_audit_09_what_is_not_measured_changes_nothing_that_is",
            "tests/unit/guest/test_host_shared.py::test_malformed_sys_config_is_refused",
            "tests/integration/test_guest_kms.py::test_pinned_kms_is_required",
        ),
    ),
    Row(
        "audit 0a",
        "one root of trust, pinned by its bytes and written down",
        (
            f"{ABOUT_EVIDENCE}::test_audit_0a_the_root_of_trust_is_pinned",
            f"{ABOUT_GUESTS}::test_audit_0a_the_root_of_trust_is_written_down",
        ),
    ),
    Row(
        "audit 0b",
        "CRLs are verified, and both kinds of certificates looked up in them",
        (
            f"{ABOUT_EVIDENCE}::test_audit_0b_revocation_is_checked",
            "tests/unit/attestation/test_verify_collateral.py::test_lower_crl_numbers_than_wanted_are_refused",
        ),
    ),
    *(
        Row(
            finding,
            "documents are held to the code: settings and their defaults, and the pages' commands, which are run",
            (
                "tests/unit/kms/test_config.py::test_every_setting_is_documented",
                "tests/unit/kms/test_config.py::test_documented_defaults_are_the_defaults",
                "tests/system/test_operators_page.py::test_the_commands_of_the_operators_page_run_as_written",
                "tests/system/test_auditors_page.py::test_the_commands_of_the_auditors_page_run_as_written",
                "tests/system/test_owners_page.py::test_the_commands_of_the_owners_page_run_as_written",
            ),
            elsewhere="upstream's own documents",
        )
        for finding in ("audit 0c", "audit 0d")
    ),
    Row(
        "weakness (a)",
        "both connections of onboarding show one and the same certificate",
        (
            "tests/unit/kms/test_replication.py::test_man_in_the_middle_of_the_second_connection_is_noticed",
            "tests/unit/kms/test_replication.py::test_man_in_the_middle_with_the_same_temporary_authority_is_noticed",
        ),
    ),
    Row(
        "weakness (b)",
        "a webhook that does not answer in time is neither yes nor no",
        ("tests/unit/kms/test_webhook.py::test_anything_else_is_neither_yes_nor_no",),
    ),
    Row(
        "weakness (c)",
        "an empty list of devices allows no device",
        ("tests/unit/kms/test_auth_simple.py::test_an_empty_list_of_devices_allows_no_device",),
    ),
    Row(
        "weakness (d)",
        "images are always verified; a name alone is worth nothing",
        (
            f"{ABOUT_EVIDENCE}::test_weakness_d_an_image_is_never_merely_claimed",
            f"{ABOUT_SERVICE}::test_reports_608_and_609_there_is_no_switch_that_releases_keys_unattested",
        ),
    ),
    Row(
        "weakness (e)",
        "before there are keys the service is on loopback, and no page of another site may use it",
        (
            f"{ABOUT_SERVICE}::test_reports_610_and_611_the_open_service_is_on_loopback_by_default",
            f"{ABOUT_SERVICE}::test_reports_610_and_611_no_page_of_another_site_may_bootstrap",
            f"{ABOUT_SERVICE}::test_reports_610_and_611_no_name_of_others_leads_to_the_open_service",
        ),
    ),
    Row(
        "weakness (f)",
        "evidence about this KMS itself is renewed every few minutes, and the chain asked every time",
        (f"{ABOUT_SERVICE}::test_weakness_f_evidence_about_ourselves_is_not_kept_for_ever",),
    ),
)

_TRACKER = re.compile(r"#(\d{3})(?:-#(\d{3}))?")
_NAMED = re.compile(r"test_(?:(reports?|roadmap)_((?:\d{3}(?:_and_|_to_)?)+)|(audit)_(0[0-9a-d])|(weakness)_([a-f]))_")


@pytest.fixture(scope="module")
def collected(project_root: Path) -> frozenset[str]:
    """Node ids of every test in the files that the register names, and of all tests of attacks on a KMS."""
    files = {test.partition("::")[0] for row in REGISTER for test in row.tests}
    files |= {str(path.relative_to(project_root)) for path in (project_root / "tests/adversary/kms").glob("test_*.py")}
    command = [sys.executable, "-m", "pytest", "-p", "no:ape_test", "-p", "no:cacheprovider", "--collect-only", "-q"]
    done = subprocess.run([*command, *sorted(files)], cwd=project_root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return frozenset(line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line)


def test_every_report_has_tests_that_exist(collected: frozenset[str]) -> None:
    """Each node id is collected; a row without tests says why the report concerns no code of ours."""
    gone = [(row.report, test) for row in REGISTER for test in row.tests if test not in collected]

    assert gone == []
    assert [row.report for row in REGISTER if not (row.tests and row.ours) and not row.elsewhere] == []


def test_no_report_is_listed_twice() -> None:
    """One row for each."""
    reports = [row.report for row in REGISTER]

    assert len(reports) == len(set(reports))


def test_every_test_named_after_a_report_is_in_its_row(collected: frozenset[str]) -> None:
    """A test that says which report it is about is found from there."""
    listed = {(row.report, test) for row in REGISTER for test in row.tests}
    named = {
        (report, test)
        for test in collected
        if test.startswith("tests/adversary/kms/")
        for report in _reports_of(test.rpartition("::")[2])
    }

    assert named - listed == set()
    assert len(named) > 30


def _reports_of(name: str) -> list[str]:
    """The reports that the name of a test names."""
    found = _NAMED.match(name)
    if found is None:
        return []
    tracker, numbers, audit, finding, weakness, letter = found.groups()
    if audit:
        return [f"audit {finding}"]
    if weakness:
        return [f"weakness ({letter})"]
    each = re.findall(r"\d{3}", numbers)
    if "_to_" in numbers:
        each = [str(number) for number in range(int(each[0]), int(each[-1]) + 1)]
    return [f"roadmap #{number}" if tracker == "roadmap" else f"#{number}" for number in each]


def test_the_register_has_every_report_of_the_specification(shared_vectors: Path) -> None:
    """Where the specification lies beside the checkout: no report of its table is missing here, and none is made up."""
    text = (shared_vectors.parent / "spec" / "kms.md").read_text()
    section = text.partition("\n## 11. ")[2].partition("\n## 12. ")[0]
    table, _, rest = section.partition("\nThird-party audit")
    wanted = set()
    for line in table.splitlines():
        cell = line.split("|")[1] if line.startswith(("| #", "| roadmap")) else ""
        for first, last in _TRACKER.findall(cell):
            numbers = range(int(first), int(last or first) + 1)
            wanted |= {f"{'roadmap ' if 'roadmap' in cell else ''}#{number}" for number in numbers}
    wanted |= {f"audit {number:02x}" for number in range(int(re.findall(r"(\d+) findings", rest)[0]))}
    wanted |= {
        f"weakness ({letter})" for letter in re.findall(r"\(([a-f])\) ", rest.partition("Further weaknesses")[2])
    }

    assert {row.report for row in REGISTER} == wanted
