"""Reading contracts: questions that are answered together, in the state of one block.

`ChainReader` is what whoever decides asks. `ChainClient` is one for a single endpoint, `Endpoints` for several that
must agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dstack.policy.decision import BlockRef


@dataclass(frozen=True, slots=True)
class Call:
    """What does the contract at *address* return to *data*? The address is 0x and 40 digits."""

    address: str
    data: bytes


@dataclass(frozen=True, slots=True)
class CodeAt:
    """Which code lies at *address*? Empty bytes where there is no contract."""

    address: str


Question = Call | CodeAt


@dataclass(frozen=True, slots=True)
class Returned:
    """What came back."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Reverted:
    """The contract refused. Nodes differ in whether they pass its reason on, so that is not compared."""

    data: bytes = field(default=b"", compare=False)


Answer = Returned | Reverted


@dataclass(frozen=True, slots=True)
class Newer:
    """What one endpoint says in the state of a block that the others have not reached; good for a denial only."""

    endpoint: str
    block: BlockRef
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """Answers in the order of the questions.

    Attributes:
        chain_id: The chain.
        block: The state that all answers rest on.
        answers: One for each question.
        newer: See `Newer`.
    """

    chain_id: int
    block: BlockRef
    answers: tuple[Answer, ...]
    newer: tuple[Newer, ...] = ()


class ChainReader(Protocol):
    """Asks a chain."""

    @property
    def block_tag(self) -> str:
        """Which block answers rest on: "finalized", "safe" or "latest"."""
        ...

    def read(self, questions: Sequence[Question]) -> Reading:
        """The answers to *questions*, all in the state of one block.

        Raises:
            ChainUnavailableError: It could not be asked; neither yes nor no.
        """
        ...
