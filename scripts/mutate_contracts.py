"""Puts small faults into the contracts, one at a time, and reports which of them the tests notice.

`mutate_contracts.py [--limit N | --all] [--seed TEXT] [--only TEXT] [--minutes M] [--json FILE] [--write]`. Exit 1 when
fewer than 95 % of the faults are noticed, or when one that is not noticed is not argued in docs/mutation.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path

import compile_contracts
from check_tree import tracked_files
from mutation.rules import Mutation, mutations
from mutation.workshop import Fate, Workshop, WorkshopError

ROOT = compile_contracts.ROOT
ARGUED = ROOT / "docs" / "mutation.md"
GOAL = 0.95
SECONDS_A_MUTATION = 900
# Between these two lines of docs/mutation.md stands the table of the last run with --write.
TABLE = ("<!-- table: make mutation ARGS=--write -->", "<!-- end of the table -->")
Tried = tuple[Mutation, Fate]


def main(arguments: Sequence[str] | None = None) -> int:
    """Mutate, test, report; 0 when the goal is reached and every survivor is argued."""
    parser = argparse.ArgumentParser(description="Which small faults in the contracts do the tests notice?")
    parser.add_argument("--limit", type=int, default=40, help="how many, evenly over the rules; default: %(default)s")
    parser.add_argument("--seed", default="", help="another text draws another sample")
    parser.add_argument("--all", action="store_true", help="every one that the rules make")
    parser.add_argument("--only", default="", help="those whose name contains this text")
    parser.add_argument("--minutes", type=int, default=60, help="begin none after this time; default: %(default)s")
    parser.add_argument("--json", type=Path, help="write the table to this file, too")
    parser.add_argument("--write", action="store_true", help=f"write the table into {ARGUED.relative_to(ROOT)}, too")
    options = parser.parse_args(arguments)
    chosen = [each for each in spread(made(), options.seed) if options.only in each.name]
    chosen = chosen if options.all else chosen[: options.limit]
    try:
        tried = run(chosen, seconds=options.minutes * 60)
    except (WorkshopError, compile_contracts.BuildError) as exc:
        sys.stderr.write(f"mutation: {exc}\n")
        return 1
    if options.json:
        options.json.write_text(json.dumps(as_json(tried, len(chosen)), indent=1) + "\n")
    if options.write:
        write_table(tried)
    return report(tried, len(chosen))


def made() -> list[Mutation]:
    """Every mutation of the contracts as they are now."""
    output = compile_contracts.run_solc(outputs=["ast"])
    trees = {path: source["ast"] for path, source in output["sources"].items()}
    ours = {path: (ROOT / path).read_bytes() for path in trees if path.startswith("contracts/")}
    return mutations(trees, ours)


def spread(found: Sequence[Mutation], seed: str = "") -> list[Mutation]:
    """All of *found*, so ordered that a beginning of any length has its share of every rule in every contract."""
    groups: dict[tuple[str, str], list[Mutation]] = {}
    for each in sorted(found, key=lambda mutation: sha256((seed + mutation.name).encode()).digest()):
        groups.setdefault((each.rule, each.path), []).append(each)
    rounds = zip_longest(*(groups[key] for key in sorted(groups)))
    return [each for one_of_each in rounds for each in one_of_each if each is not None]


def run(chosen: Sequence[Mutation], *, seconds: float) -> list[Tried]:
    """Try them in a copy of the checkout; those that there was no time for are absent from the answer.

    Raises:
        WorkshopError: A test that noticed a fault fails without it, too, or the tests do not work.
    """
    start = time.monotonic()
    files = [name for name in tracked_files() if (ROOT / name).is_file()]
    tried: list[Tried] = []
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        workshop = Workshop(Path(folder), files, Counter())
        for mutation in chosen:
            passed = time.monotonic() - start
            if passed > seconds:
                break
            fate = workshop.try_mutation(mutation, seconds=SECONDS_A_MUTATION)
            tried.append((mutation, fate))
            place = f"[{len(tried)}/{len(chosen)}, {passed / 60:.0f} min]"
            print(f"{place} {fate.outcome:9} {mutation.name}  {fate.by}", flush=True)
    return tried


def write_table(tried: Sequence[Tried]) -> None:
    """Put what became of each into docs/mutation.md, between the two lines that mark the place."""
    head, _, rest = ARGUED.read_text().partition(TABLE[0])
    _, _, tail = rest.partition(TABLE[1])
    rows = ["| Rule | Place | Outcome | Noticed by |", "|---|---|---|---|"]
    rows += [
        f"| {mutation.rule} | `{mutation.name}` | {fate.outcome} | {fate.by.replace('tests/', '')} |"
        for mutation, fate in sorted(tried, key=lambda pair: pair[0].name)
    ]
    said = f"{share(tried):.1%} of {len(judged(tried))} that tests could judge were noticed, of {len(tried)} tried."
    ARGUED.write_text(head + "\n".join([TABLE[0], said, "", *rows, TABLE[1]]) + tail)


def judged(tried: Sequence[Tried]) -> list[Tried]:
    """Those that compiled to other code: the ones that tests can judge."""
    return [(mutation, fate) for mutation, fate in tried if fate.outcome in ("killed", "survived")]


def share(tried: Sequence[Tried]) -> float:
    """How much of what could be noticed was."""
    outcomes = Counter(fate.outcome for _, fate in judged(tried))
    return outcomes["killed"] / max(1, outcomes.total())


def survivors(tried: Sequence[Tried]) -> list[Mutation]:
    """Those that nothing noticed."""
    return [mutation for mutation, fate in tried if fate.outcome == "survived"]


def unargued(survived: Sequence[Mutation]) -> list[Mutation]:
    """The survivors that docs/mutation.md does not name."""
    words = ARGUED.read_text() if ARGUED.exists() else ""
    return [mutation for mutation in survived if f"`{mutation.name}`" not in words]


def report(tried: Sequence[Tried], wanted: int) -> int:
    """Print the table and the survivors; the exit code."""
    print("\n".join(["", *table(tried), ""]))
    for mutation in survivors(tried):
        print(f"survived: {mutation.name}\n  {mutation.path}:{mutation.line}: {mutation.change}")
    missing = unargued(survivors(tried))
    for mutation in missing:
        print(f"not argued in {ARGUED.relative_to(ROOT)}: {mutation.name}")
    if len(tried) < wanted:
        print(f"no time for {wanted - len(tried)} of {wanted}")
    print(f"noticed: {share(tried):.1%} of {len(judged(tried))}; the goal is {GOAL:.0%}")
    return int(share(tried) < GOAL or bool(missing) or not judged(tried))


def table(tried: Sequence[Tried]) -> Iterator[str]:
    """Rule by rule, how many were noticed."""
    outcomes = ("killed", "survived", "same", "refused", "unjudged")
    yield f"{'rule':20}" + "".join(f"{outcome:>10}" for outcome in outcomes)
    for rule in sorted({mutation.rule for mutation, _ in tried}):
        counts = Counter(fate.outcome for mutation, fate in tried if mutation.rule == rule)
        yield f"{rule:20}" + "".join(f"{counts[outcome]:>10}" for outcome in outcomes)
    counts = Counter(fate.outcome for _, fate in tried)
    yield f"{'together':20}" + "".join(f"{counts[outcome]:>10}" for outcome in outcomes)


def as_json(tried: Sequence[Tried], wanted: int) -> dict[str, object]:
    """The same for programs."""
    entries = [
        {
            "name": mutation.name,
            "place": f"{mutation.path}:{mutation.line}",
            "change": mutation.change,
            "outcome": fate.outcome,
            "by": fate.by,
        }
        for mutation, fate in tried
    ]
    return {"wanted": wanted, "judged": len(judged(tried)), "share": round(share(tried), 4), "mutations": entries}


if __name__ == "__main__":
    sys.exit(main())
