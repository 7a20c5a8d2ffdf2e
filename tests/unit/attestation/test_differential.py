"""Our verdict beside the quote library's on thousands of mutated quotes and collaterals.

We accept only what the library accepts. Where it accepts and we refuse, the refusal is a row of the table in
docs/verification-steps.md, and every row has a case that shows it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import dcap_qvl
import pytest

from dstack.attestation.collateral import NAMES, parse_collateral, serialise_collateral
from dstack.attestation.content_cache import ContentCache
from dstack.attestation.quote import TdReport, parse_quote
from dstack.attestation.roots import TrustedRoots, simulated_root
from dstack.attestation.verify import VerifiedQuote, verify_quote
from dstack.errors import DstackError, QuoteUntrustedError
from dstack.simulator.quoting import Form, make_enclave_quote
from tests.unit.attestation.stricter import (
    CASES,
    ENCLAVE,
    GOOD,
    PKI,
    REPORT_DATA,
    Case,
    Row,
    read_table,
    signed,
    td_quote,
    text_of,
)

# The parser warns of certificates it will refuse one day; mutations make such.
pytestmark = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")

SEED = 20270115
SGX = serialise_collateral(PKI.collateral(sgx=True))


@pytest.fixture(scope="module")
def table(project_root: Path) -> tuple[Row, ...]:
    """The rows of the table."""
    return read_table(project_root / "docs" / "verification-steps.md")


class Bench:
    """Asks both verifiers, with one cache as a server has it."""

    def __init__(self, table: tuple[Row, ...]) -> None:
        self._table = table
        self._cache = ContentCache()
        self.asked = 0

    def compare(self, case: Case) -> str | None:
        """Compare the verdicts on one case; the row's name where the library accepts and we refuse."""
        self.asked += 1
        ours, library = self.ours(case), _library(case)
        if isinstance(ours, VerifiedQuote):
            assert library is not None, f"accepted, and the library refuses: {case.quote.hex()[:80]}"
            return None
        return None if library is None else self._row(ours)

    def ours(self, case: Case) -> VerifiedQuote | DstackError:
        """Our verdict: what was verified, or why not."""
        roots = TrustedRoots((simulated_root(case.root_der),))
        try:
            collateral = _parsed(case.collateral)
            return verify_quote(case.quote, collateral, roots=roots, at=case.at, policy=case.policy, cache=self._cache)
        except DstackError as exc:
            return exc

    def _row(self, refusal: DstackError) -> str:
        rows = [row.name for row in self._table if row.pattern.match(str(refusal))]
        assert rows, f"the library accepts, we refuse, and the table has no row for it: {refusal}"
        if isinstance(refusal, QuoteUntrustedError):
            assert any(refusal.step in row.steps for row in self._table if row.name in rows)
        return rows[0]


_parsed = cache(parse_collateral)


@cache
def _form(collateral: str) -> dcap_qvl.QuoteCollateralV3 | None:
    try:
        return dcap_qvl.QuoteCollateralV3.from_json(collateral)
    except ValueError:
        return None


def _library(case: Case) -> str | None:
    form = _form(case.collateral)
    try:
        return form and dcap_qvl.verify_with_root_ca(case.quote, form, case.root_der, int(case.at.timestamp())).status
    except ValueError:
        return None


def _flipped(raw: bytes, offset: int, chance: random.Random) -> bytes:
    changed = bytearray(raw)
    changed[offset] ^= chance.randrange(1, 256)
    return bytes(changed)


def mutated_quotes(chance: random.Random) -> Iterator[Case]:
    """Every byte of a quote of version 4, and every third of versions 5 and 3, changed once."""
    enclave = make_enclave_quote(PKI, enclave=ENCLAVE, report_data=REPORT_DATA)
    for raw, collateral, step in ((td_quote(), GOOD, 1), (td_quote(form=Form.V5_TD15), GOOD, 3), (enclave, SGX, 3)):
        for offset in range(0, len(raw), step):
            yield Case(_flipped(raw, offset, chance), collateral)
        for _ in range(50):
            yield Case(raw[: chance.randrange(len(raw))], collateral)


def resigned_quotes(chance: random.Random) -> Iterator[Case]:
    """Quotes whose every field of the body says something else, properly signed."""
    sizes = {name: len(field_of(name)) for name in TdReport.__dataclass_fields__ if name not in ("SIZE", "SIZE_TD15")}
    for name, size in sizes.items():
        for _ in range(8):
            value = _flipped(field_of(name), chance.randrange(size), chance)
            yield Case(td_quote(form=Form.V5_TD15, fields_override={name: value}), GOOD)


@cache
def _body() -> TdReport:
    body = parse_quote(td_quote(form=Form.V5_TD15)).body
    assert isinstance(body, TdReport)
    return body


def field_of(name: str) -> bytes:
    """A field of the unchanged TD 1.5 report."""
    value = getattr(_body(), name)
    assert isinstance(value, bytes)
    return value


def mutated_collaterals(chance: random.Random) -> Iterator[Case]:
    """Every member of collateral with characters changed, and both documents with numbers changed and signed anew."""
    collateral, quote = json.loads(GOOD), td_quote()
    for name in NAMES:
        for offset in chance.sample(range(len(collateral[name])), 64):
            text = collateral[name]
            changed = text[:offset] + chr(chance.randrange(32, 127)) + text[offset + 1 :]
            yield Case(quote, json.dumps({**collateral, name: changed}))
    for name in ("tcb_info", "qe_identity"):
        for _ in range(120):
            text = "".join(
                str(chance.randrange(10)) if letter.isdigit() and chance.random() < 0.02 else letter
                for letter in collateral[name]
            )
            yield Case(quote, text_of(PKI.collateral(), **signed(name, text)))


def test_we_accept_only_what_the_library_accepts(table: tuple[Row, ...]) -> None:
    """Over more than 5,000 mutations we accept nothing that the library refuses, and refuse more only by the table."""
    bench, chance = Bench(table), random.Random(SEED)

    for cases in (mutated_quotes, resigned_quotes, mutated_collaterals):
        for case in cases(chance):
            bench.compare(case)

    assert bench.asked > 5_000
    assert isinstance(bench.ours(Case(td_quote(), GOOD)), VerifiedQuote)


@pytest.mark.parametrize("name", list(CASES))
def test_each_row_of_the_table_is_true(name: str, table: tuple[Row, ...]) -> None:
    """What the row says is accepted by the library, and refused by us at its step, in its words."""
    case, row = CASES[name](), next(row for row in table if row.name == name)
    refusal = Bench(table).ours(case)

    assert _library(case) is not None
    assert isinstance(refusal, DstackError)
    assert row.pattern.match(str(refusal)), str(refusal)
    if isinstance(refusal, QuoteUntrustedError):
        assert refusal.step in row.steps


def test_the_table_has_no_row_without_a_case(table: tuple[Row, ...]) -> None:
    """The table and the cases name the same things, each once."""
    assert sorted(row.name for row in table) == sorted(CASES)


def test_a_refusal_outside_the_table_would_be_seen(table: tuple[Row, ...]) -> None:
    """Without its row, a stricter refusal fails the comparison."""
    without = Bench(tuple(row for row in table if row.name != "padding"))
    with pytest.raises(AssertionError, match="the table has no row for it: padding: want only zero bytes"):
        without.compare(CASES["padding"]())
