"""`dstack quote show`."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from dstack.cli.quote import command
from dstack.errors import InputError


def show(*arguments: str) -> str:
    """Run the command; returns what it prints, raises what it raises."""
    result = CliRunner().invoke(command, ["show", *arguments], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.mark.parametrize("name", ["intel-tdx-v4-uptodate", "intel-sgx-v3-hardening", "intel-tdx-v5-below-lowest-level"])
def test_every_byte_is_shown_with_its_name(project_root, name):
    """The JSON answer holds the whole quote, field by field, its certificates, and the recorded platform."""
    folder = project_root / "tests" / "vectors" / "quotes" / name
    expected = json.loads((folder / "expect.json").read_text())

    answer = json.loads(show(str(folder / "quote.bin"), "--json"))

    fields = {field["name"]: field for field in answer["fields"]}
    assert "".join(field["hex"] for field in answer["fields"]) == (folder / "quote.bin").read_bytes().hex()
    assert fields["REPORTDATA"]["hex"] == expected["body"]["report_data"]
    assert [certificate["subject"] for certificate in answer["certificates"]][::2] == [
        "Intel SGX PCK Certificate",
        "Intel SGX Root CA",
    ]
    assert expected["pck"].items() <= answer["platform"].items()


def test_people_see_names_and_meanings(project_root):
    """The table names places, fields and meanings; long fields are cut."""
    output = show(str(project_root / "tests" / "vectors" / "quotes" / "intel-tdx-v4-uptodate" / "quote.bin"))

    assert "    4     4  TEE type                     81000000  (129: TDX)\n" in output
    assert "  168     8  TDATTRIBUTES                 0000001000000000  (SEPT_VE_DISABLE)\n" in output
    assert "PEM, 3 certificates" in output
    assert "certificate 1: subject              Intel SGX PCK Platform CA\n" in output
    assert "platform: fmspc                   b0c06f000000\n" in output
    assert max(map(len, output.splitlines())) < 200


def test_what_is_no_quote_is_refused(tmp_path):
    """A file that holds no quote is bad input."""
    (tmp_path / "none").write_bytes(b"none of it")
    with pytest.raises(InputError, match="unknown form"):
        show(str(tmp_path / "none"))
