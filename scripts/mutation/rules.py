"""The rules that make mutations: each looks at one node of solc's syntax tree and may answer with a changed text.

Nothing here knows a line or a name of our contracts, so the rules survive every rewrite of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

Node = Mapping[str, Any]

_OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_NEIGHBOUR = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
_ARITHMETIC = {"+": "-", "-": "+", "*": "/", "/": "*", "&&": "||", "||": "&&", "&": "|", "|": "&"}
_PACKED = ("encode", "encodePacked")
_NOTHING = "{}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a node stands.

    Attributes:
        source: The text that solc parsed, as bytes: solc counts bytes.
        parents: The nodes around it, the nearest last.
        enums: Members of each enum, by the id of its declaration.
    """

    source: bytes
    parents: tuple[Node, ...]
    enums: Mapping[int, tuple[str, ...]]

    def text(self, node: Node) -> str:
        """The source text of *node*."""
        start, length = span(node)
        return self.source[start : start + length].decode()

    def within(self, kind: str) -> Node | None:
        """The nearest node of *kind* around this one."""
        return next((node for node in reversed(self.parents) if node["nodeType"] == kind), None)


Rule = Callable[[Node, Place], Iterator[tuple[Node, str]]]


@dataclass(frozen=True, slots=True)
class Mutation:
    """One fault in one source.

    Attributes:
        name: `Contract.function:rule:number`; the number counts within those three.
        path: The source, from the root of the project.
        line: Where, for a person.
        change: What, for a person.
    """

    name: str
    rule: str
    path: str
    line: int
    start: int
    length: int
    text: str
    change: str

    def apply(self, source: bytes) -> bytes:
        """The source with the fault in it."""
        return source[: self.start] + self.text.encode() + source[self.start + self.length :]


def span(node: Node) -> tuple[int, int]:
    """Offset and length of *node*, in bytes."""
    start, length, _ = node["src"].split(":")
    return int(start), int(length)


def drop_require(node: Node, _: Place) -> Iterator[tuple[Node, str]]:
    """A requirement is gone."""
    if node["nodeType"] == "ExpressionStatement" and _called(node["expression"]) in ("require", "assert"):
        yield node, _NOTHING


def drop_call(node: Node, _: Place) -> Iterator[tuple[Node, str]]:
    """A call of a function for its effect is gone."""
    is_call = node["nodeType"] == "ExpressionStatement" and node["expression"]["nodeType"] == "FunctionCall"
    if is_call and _called(node["expression"]) not in ("require", "assert"):
        yield node, _NOTHING


def drop_assignment(node: Node, place: Place) -> Iterator[tuple[Node, str]]:
    """A write, an increment or a deletion is gone; not in the head of a loop, which would then never end."""
    if node["nodeType"] != "ExpressionStatement" or place.parents[-1]["nodeType"] == "ForStatement":
        return
    if node["expression"]["nodeType"] in ("Assignment", "UnaryOperation"):
        yield node, _NOTHING


def drop_event(node: Node, _: Place) -> Iterator[tuple[Node, str]]:
    """An event is missing."""
    if node["nodeType"] == "EmitStatement":
        yield node, _NOTHING


def drop_revert(node: Node, _: Place) -> Iterator[tuple[Node, str]]:
    """A refusal is gone."""
    if node["nodeType"] == "RevertStatement":
        yield node, _NOTHING


def drop_modifier(node: Node, _: Place) -> Iterator[tuple[Node, str]]:
    """A function lacks a modifier."""
    if node["nodeType"] == "ModifierInvocation" and node.get("kind") == "modifierInvocation":
        yield node, ""


def drop_branch(node: Node, _: Place) -> Iterator[tuple[Node, str]]:
    """What is done under a condition is never done."""
    if node["nodeType"] == "IfStatement":
        yield node["condition"], "false"


def negate_comparison(node: Node, place: Place) -> Iterator[tuple[Node, str]]:
    """A comparison says the opposite."""
    if node["nodeType"] == "BinaryOperation" and node["operator"] in _OPPOSITE:
        yield node, _with_operator(node, place, _OPPOSITE[node["operator"]])


def move_boundary(node: Node, place: Place) -> Iterator[tuple[Node, str]]:
    """A comparison takes its bound in, or leaves it out."""
    if node["nodeType"] == "BinaryOperation" and node["operator"] in _NEIGHBOUR:
        yield node, _with_operator(node, place, _NEIGHBOUR[node["operator"]])


def swap_operator(node: Node, place: Place) -> Iterator[tuple[Node, str]]:
    """Plus for minus, and for or; or one of Math's two extremes for the other."""
    if node["nodeType"] == "BinaryOperation" and node["operator"] in _ARITHMETIC:
        yield node, _with_operator(node, place, _ARITHMETIC[node["operator"]])
    if node["nodeType"] == "MemberAccess" and node["memberName"] in ("min", "max") and _is_library(node["expression"]):
        yield node, place.text(node["expression"]) + (".max" if node["memberName"] == "min" else ".min")


def drop_negation(node: Node, place: Place) -> Iterator[tuple[Node, str]]:
    """A `not` is gone."""
    if node["nodeType"] == "UnaryOperation" and node["operator"] == "!":
        yield node, place.text(node["subExpression"])


def shift_time(node: Node, place: Place) -> Iterator[tuple[Node, str]]:
    """Now is a second later, or earlier; a duration is a second shorter, or longer."""
    is_now = node["nodeType"] == "MemberAccess" and place.text(node) == "block.timestamp"
    if is_now or (node["nodeType"] == "Literal" and node.get("subdenomination")):
        for sign in "+-":
            yield node, f"({place.text(node)} {sign} 1)"


def shift_number(node: Node, place: Place) -> Iterator[tuple[Node, str]]:
    """A number is one more."""
    if node["nodeType"] == "Literal" and node["kind"] == "number" and not node.get("subdenomination"):
        yield node, f"({place.text(node)} + 1)"


def flip_truth(node: Node, _: Place) -> Iterator[tuple[Node, str]]:
    """True for false, false for true."""
    if node["nodeType"] == "Literal" and node["kind"] == "bool":
        yield node, "false" if node["value"] == "true" else "true"


def negate_return(node: Node, place: Place) -> Iterator[tuple[Node, str]]:
    """A function of one truth value answers the opposite."""
    value = node.get("expression") if node["nodeType"] == "Return" else None
    if value and _type(value) == "bool" and value["nodeType"] != "Literal":
        yield value, f"!({place.text(value)})"


def change_member(node: Node, place: Place) -> Iterator[tuple[Node, str]]:
    """Another member of the same enum."""
    if node["nodeType"] != "MemberAccess":
        return
    members = place.enums.get(node["expression"].get("referencedDeclaration", -1), ())
    if node["memberName"] in members:
        following = members[(members.index(node["memberName"]) + 1) % len(members)]
        yield node, f"{place.text(node['expression'])}.{following}"


def change_caller(node: Node, place: Place) -> Iterator[tuple[Node, str]]:
    """Who calls is who signed the transaction, or the contract itself."""
    if node["nodeType"] == "MemberAccess" and place.text(node) == "msg.sender":
        yield node, "tx.origin"
        yield node, "address(this)"


def blank_preimage(node: Node, place: Place) -> Iterator[tuple[Node, str]]:
    """One part of what is hashed is left out."""
    if node["nodeType"] != "FunctionCall" or node["expression"].get("memberName") not in _PACKED:
        return
    if place.text(node["expression"]).startswith("abi.") and len(node["arguments"]) > 1:
        for argument in node["arguments"]:
            yield argument, "uint256(0)"


def swap_event_values(node: Node, place: Place) -> Iterator[tuple[Node, str]]:
    """Two neighbouring values of an event change places."""
    if node["nodeType"] != "EmitStatement":
        return
    arguments = node["eventCall"]["arguments"]
    for first, second in pairwise(arguments):
        if _type(first) == _type(second) and place.text(first) != place.text(second):
            start = span(first)[0]
            end = sum(span(second))
            both = {"nodeType": "Pair", "src": f"{start}:{end - start}:0"}
            yield both, f"{place.text(second)}, {place.text(first)}"


RULES: dict[str, Rule] = {
    rule.__name__.replace("_", "-"): rule
    for rule in (
        drop_require,
        drop_call,
        drop_assignment,
        drop_event,
        drop_revert,
        drop_modifier,
        drop_branch,
        drop_negation,
        negate_comparison,
        move_boundary,
        swap_operator,
        shift_time,
        shift_number,
        flip_truth,
        negate_return,
        change_member,
        change_caller,
        blank_preimage,
        swap_event_values,
    )
}


def mutations(trees: Mapping[str, Node], sources: Mapping[str, bytes]) -> list[Mutation]:
    """Every mutation of *sources* that the rules know.

    Args:
        trees: solc's syntax tree of each source of the build, for all that may declare an enum.
        sources: The sources to mutate, by the names that *trees* has for them.
    """
    enums = {
        node["id"]: tuple(member["name"] for member in node["members"])
        for tree in trees.values()
        for node, _ in _walk(tree, ())
        if node["nodeType"] == "EnumDefinition"
    }
    found: list[Mutation] = []
    for path, source in sources.items():
        numbers: dict[str, Iterator[int]] = {}
        for node, parents in _walk(trees[path], ()):
            place = Place(source, parents, enums)
            scope = _scope(place)
            if scope is None:
                continue
            for name, rule in RULES.items():
                for changed, text in rule(node, place):
                    numbered = next(numbers.setdefault(f"{scope}:{name}", count(1)))
                    found.append(_mutation(f"{scope}:{name}:{numbered}", name, path, changed, text, source))
    return found


def _mutation(name: str, rule: str, path: str, node: Node, text: str, source: bytes) -> Mutation:
    start, length = span(node)
    if text == _NOTHING:  # solc does not count a statement's semicolon to it
        length = source.index(b";", start + length) + 1 - start
    was = " ".join(source[start : start + length].decode().split())
    change = f"{was} -> {text or 'nothing'}"
    return Mutation(name, rule, path, source[:start].count(b"\n") + 1, start, length, text, change)


def _scope(place: Place) -> str | None:
    """`Contract.function` or `Contract.CONSTANT` around a node that runs; None for words and declarations."""
    contract = place.within("ContractDefinition")
    if contract is None or contract["contractKind"] == "interface":
        return None
    error = place.within("RevertStatement")
    if error is not None or _in_message(place):
        return None
    for kind in ("FunctionDefinition", "ModifierDefinition", "VariableDeclaration"):
        holder = place.within(kind)
        if holder is not None and (kind != "VariableDeclaration" or holder["stateVariable"]):
            return f"{contract['name']}.{holder['name'] or holder.get('kind')}"
    return None


def _in_message(place: Place) -> bool:
    """Whether a node only words the error of a requirement."""
    around = pairwise(place.parents)
    return any(_called(call) == "require" and child in call["arguments"][1:] for call, child in around)


def _walk(node: Any, parents: tuple[Node, ...]) -> Iterator[tuple[Node, tuple[Node, ...]]]:
    if isinstance(node, list):
        for item in node:
            yield from _walk(item, parents)
    elif isinstance(node, dict):
        if "nodeType" in node and "src" in node:
            yield node, parents
            parents = (*parents, node)
        for key, value in node.items():
            if key not in ("documentation", "typeName", "parameters", "returnParameters", "typeDescriptions"):
                yield from _walk(value, parents)


def _called(node: Node) -> str | None:
    if node["nodeType"] != "FunctionCall":
        return None
    name = node["expression"].get("name")
    return str(name) if name else None


def _is_library(node: Node) -> bool:
    return _type(node).startswith("type(library")


def _type(node: Node) -> str:
    return str(node.get("typeDescriptions", {}).get("typeString") or "")


def _with_operator(node: Node, place: Place, operator: str) -> str:
    return f"({place.text(node['leftExpression'])} {operator} {place.text(node['rightExpression'])})"
