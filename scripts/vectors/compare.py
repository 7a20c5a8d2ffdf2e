"""Computations are run on cases, and what comes out is compared with what was expected."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dstack.errors import InputError, RefusedError
from vectors.cases import Case, ShapeError, Tree, named_sections, read_file, section_cases, section_name

Computed = Mapping[str, object]

# Members that describe a case and that nothing computes.
ANNOTATIONS = frozenset({"checked_against_real_quote", "data_sig_scheme", "kdf", "name", "note", "rule", "source"})

_REFUSAL = "a refusal"


class UnsupportedError(Exception):
    """A case asks for something that this project or this computer does not have."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an expected member that cannot be computed and is therefore given."""

    path: str
    select: Callable[[Any], object]


@dataclass(frozen=True, slots=True)
class Computation:
    """Some of the values of a case, from some others.

    Attributes:
        given: The members that the function gets, in that order; where one is absent nothing is computed.
        compute: Returns JSON values by the paths of the members that should equal them, each as a whole.
        optional: Further members that it gets, None where one is absent.
        needs: Members that it does not get, without which nothing is computed either.
        refuses: The function must refuse, with an error of ours.
    """

    given: tuple[str, ...]
    compute: Callable[..., Computed]
    optional: tuple[str | Part, ...] = ()
    needs: tuple[str, ...] = ()
    refuses: bool = False

    def applies_to(self, case: Case) -> bool:
        """Whether the case has what is needed."""
        return all(case.has(path) for path in (*self.given, *self.needs))

    def run(self, case: Case) -> Computed:
        """Call the function; the given members are all that it gets to see."""
        given = [case.value(path) for path in self.given]
        optional = [_optional(case, each) for each in self.optional]
        return self.compute(*given, *optional)

    def names(self) -> set[str]:
        """The members that the function gets whole."""
        return {path.removeprefix("@") for path in (*self.given, *self.optional) if isinstance(path, str)}


# By section of a file (see `section_cases`).
Sections = Mapping[str, tuple[Computation, ...]]


@dataclass(frozen=True, slots=True)
class Failure:
    """One thing that is not as expected."""

    case: str
    member: str
    expected: str
    got: str


@dataclass(slots=True)
class Tally:
    """What came of one kind; `not_compared` names members that nothing uses.

    `cases` are those that were run; the `unsupported` ones are not among them.
    """

    kind: str
    cases: int = 0
    failed: int = 0
    unsupported: int = 0
    failures: list[Failure] = field(default_factory=list)
    not_compared: set[str] = field(default_factory=set)

    @property
    def passed(self) -> int:
        """Cases of which everything that was compared was as expected."""
        return self.cases - self.failed

    def add(self, failures: Iterable[Failure]) -> None:
        """Count one case."""
        found = list(failures)
        self.cases += 1
        self.failed += bool(found)
        self.failures += found


def run_kind(kind: str, path: Path, sections: Sections) -> Tally:
    """Run every case of one file."""
    tally = Tally(kind)
    try:
        tree = read_file(path)
        sections = {each: parts for name, parts in sections.items() for each in named_sections(tree, name)}
        cases = [(case, parts) for name, parts in sections.items() for case in section_cases(tree, name, path.parent)]
    except ShapeError as exc:
        tally.add([Failure("file", "", "a file of a known shape", str(exc))])
        return tally
    used = {section_name(name) for name in sections}
    for case, computations in cases:
        touched = _run_case(tally, case, computations)
        used |= {name.removeprefix("/") for name in touched if case.is_whole_file or name.startswith("/")}
    if not any(name in tree for name in used):
        tally.add([Failure("file", "", "a file of a known shape", f"members {', '.join(tree)}")])
    tally.not_compared |= _left_over(tree, used)
    return tally


def _run_case(tally: Tally, case: Case, computations: tuple[Computation, ...]) -> set[str]:
    """Count one case; returns the members that were given or compared."""
    applied = [each for each in computations if each.applies_to(case)]
    try:
        results = [result for each in applied for result in _results(case, each)]
    except UnsupportedError:
        tally.unsupported += 1
        return {name for each in computations for name in each.names()}
    touched = {name for each in computations for name in each.names()} | {member for member, _ in results}
    if results:
        tally.add(failure for _, failure in results if failure is not None)
    elif not case.is_whole_file:
        tally.add([Failure(case.name, "", "a case of a known shape", f"members {', '.join(case.members)}")])
    if not case.is_whole_file:
        tally.not_compared |= _left_over(case.members, touched)
    return touched


def _optional(case: Case, each: str | Part) -> object:
    path, select = (each.path, each.select) if isinstance(each, Part) else (each, None)
    if not case.has(path):
        return None
    return case.value(path) if select is None else select(case.value(path))


def _results(case: Case, computation: Computation) -> Iterator[tuple[str, Failure | None]]:
    """The members that were compared, each with what is wrong about it."""
    try:
        computed = computation.run(case)
    except UnsupportedError:
        raise
    except (InputError, RefusedError) as exc:
        yield "", None if computation.refuses else _crash(case, exc)
    # Whatever goes wrong is a failure of this case, and the next one is run.
    except Exception as exc:  # noqa: BLE001
        yield "", _crash(case, exc)
    else:
        if computation.refuses:
            yield "", Failure(case.name, "", _REFUSAL, _text(dict(computed)))
        yield from ((member, _difference(case, member, got)) for member, got in computed.items() if case.has(member))


def _difference(case: Case, member: str, got: object) -> Failure | None:
    expected = _text(case.value(member))
    return None if expected == _text(got) else Failure(case.name, member, expected, _text(got))


def _crash(case: Case, error: Exception) -> Failure:
    return Failure(case.name, "", "no error", f"{type(error).__name__}: {error}")


def _left_over(members: Tree, names: set[str]) -> set[str]:
    known = names | ANNOTATIONS
    return {path for path in _leaves(members, "") if not _covered(path, known)}


def _covered(path: str, known: set[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[: end + 1]) in known for end in range(len(parts)))


def _leaves(tree: Tree, prefix: str) -> Iterator[str]:
    for name, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _text(value: object) -> str:
    """One text for each JSON value, so that 1 is neither 1.0 nor true."""
    return json.dumps(value, sort_keys=True)
