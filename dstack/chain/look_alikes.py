"""What resembles something else: an address like a known one, a name like another, letters that are not what they seem.

People compare the ends of an address and the shape of a word. Whoever makes an address that has both ends of a known
one, or a name that differs in a letter of another script, counts on that.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from eth_utils.address import to_checksum_address

from dstack.chain.action_data import parse_action_data
from dstack.chain.client import printable
from dstack.chain.deploy import Deployment
from dstack.chain.governed import Governed
from dstack.chain.operator import Action, Content

_ENDS = 4
_FEW = 6
# Shapes that are read as one another, after folding case and compatible forms.
_SHAPES = {"0": "o", "1": "l", "i": "l", "|": "l", "5": "s", "rn": "m", "vv": "w", "_": "-"}


def resembles(address: str, known: str) -> bool:
    """Whether a person may take *address* for *known*, which is another one: both ends alike, or few digits apart."""
    one, other = address[2:].lower(), known[2:].lower()
    if one == other:
        return False
    ends = one[:_ENDS] == other[:_ENDS] and one[-_ENDS:] == other[-_ENDS:]
    return ends or sum(a != b for a, b in zip(one, other, strict=True)) <= _FEW


def name_resembles(name: str, known: str) -> bool:
    """Whether a person may read *name* as *known*, which is another one."""
    return name != known and _shape(name) == _shape(known)


def address_warnings(actions: Sequence[Action], known: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each account in *actions* that only resembles one of *known*, words by address."""
    for action in actions:
        for account in _accounts(action):
            if account in known:
                continue
            for other, words in known.items():
                if resembles(account, other):
                    yield f"! LOOK-ALIKE: {action.kind.name} names {account}, which is not {words} {other}"


def name_warnings(name: str, known: Sequence[str]) -> Iterator[str]:
    """A sentence for each of *known* that *name* may be taken for, and one if its letters are not plain."""
    for other in known:
        if name_resembles(name, other):
            yield f"! LOOK-ALIKE: name {printable(name)!r} is not {printable(other)!r}"
    yield from text_warnings("name", name)


def text_warnings(what: str, text: str) -> Iterator[str]:
    """A sentence if *text* holds letters that may stand for others, or hides them (`xn--`)."""
    foreign = sorted({letter for letter in text if not letter.isascii() or not letter.isprintable()})
    if foreign:
        points = ", ".join(f"U+{ord(letter):04X}" for letter in foreign[:8])
        yield f"! LOOK-ALIKE: {what} {printable(text, 512)!r} holds letters outside of ASCII: {points}"
    if "xn--" in text.lower():
        yield f"! LOOK-ALIKE: {what} {printable(text, 512)!r} holds an encoded name (xn--)"


def known_accounts(governed: Governed, deployment: Deployment) -> dict[str, str]:
    """Every account that the governed contracts know, and what it is to them."""
    return {
        **dict.fromkeys(governed.apps, "app"),
        **{one.account: f"the account named as {one.role.lower()}" for one in governed.nominations},
        deployment.app_implementation: "the code of new apps",
        deployment.kms_auth: "KmsAuth",
        deployment.operator: "UpgradeOperator",
        governed.owner: "the owner",
        governed.guardian: "the guardian",
    }


def content_warnings(content: Content, known: Mapping[str, str]) -> list[str]:
    """Everything in a proposal that resembles something else."""
    found = address_warnings((*content.actions, *content.rollback), known)
    return list(dict.fromkeys((*found, *text_warnings("uri", content.uri))))


def _accounts(action: Action) -> tuple[str, ...]:
    """The target, and the account that the data names if it names one."""
    meaning = parse_action_data(action.kind, action.data)
    named = (to_checksum_address(meaning),) if isinstance(meaning, str) else ()
    return action.target, *named


def _shape(name: str) -> str:
    text = unicodedata.normalize("NFKD", name).casefold()
    text = "".join(letter for letter in text if not unicodedata.combining(letter) and letter.isprintable())
    text = "".join(_CONFUSED.get(letter, letter) for letter in text)
    for shape, plain in _SHAPES.items():
        text = text.replace(shape, plain)
    return text


# Cyrillic and Greek letters with the shape of a Latin one (Unicode TR 39, confusables; the common ones).
_CONFUSED = dict(
    zip(
        "\u0430\u0435\u043e\u0440\u0441\u0445\u0443\u0456\u0458\u0455\u04bb\u0501\u051b\u051d\u03bf\u03b1\u03bd\u03c1\u03b9",
        "aeopcxyijshdqwoavpl",
        strict=True,
    )
)
