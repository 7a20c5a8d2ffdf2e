"""Every error this project raises.

DstackError
├── InputError                  exit 2: what came is not of the form that was wanted
│   ├── ComposeMalformedError       a docker-compose or app-compose file
│   ├── EventLogMalformedError      an event log
│   ├── QuoteMalformedError         a DCAP quote
│   ├── CollateralMalformedError    Intel's (or a simulator's) statements
│   ├── EvidenceMalformedError      the attestation blob, or its X.509 extensions
│   ├── MeasurementMalformedError   a measurement document, VM config or OS image
│   │   └── MeasurementInputMissingError   a value that is measured was not given
│   ├── MessageMalformedError       a message on the network
│   ├── KeyMalformedError           key material of the wrong size or range
│   └── ConfigError                 a setting
├── RefusedError                exit 1: well formed, and the answer is no
│   ├── QuoteUntrustedError         a verification step failed; `.step` is its number
│   ├── AppraisalError              genuine, but not what was wanted
│   │   └── ImageRefusedError           not started from the OS image that it names
│   ├── KeyReleaseDeniedError       the chain forbids it; `.rule` says which rule
│   ├── SealError                   a sealed box that does not open, or is not for us
│   ├── HandoverRefusedError        a handover message that answers nothing we asked
│   ├── DecisionLogBrokenError      an entry of a KMS's log is missing, changed or not signed by it
│   ├── KeystoreError               root keys exist already, or are damaged
│   └── PeerRefusedError            the other side answered with an error
└── UnavailableError            exit 3: could not ask; neither yes nor no
    ├── ChainUnavailableError       no endpoint answered
    │   └── ChainElsewhereError         as many as must agree are on another chain than the one wanted
    ├── AgentUnavailableError       no guest agent at the socket
    ├── CollateralUnavailableError  no collateral for this platform
    │   ├── CollateralTransientError    a source was down, slow or busy: ask again later
    │   └── CollateralFatalError        a source answered, and asking again will not help
    ├── ImageUnavailableError       no OS image to compare a machine with
    ├── DecisionLogUnavailableError  the database of a KMS's log cannot be used
    ├── PeerUnavailableError        the other side did not answer
    ├── ServiceBusyError            too much is asked of this service at once
    └── ToolUnavailableError        a program that we start is missing or died
"""

from __future__ import annotations


class DstackError(Exception):
    """Root of the tree. `exit_code` is what a command line answers."""

    exit_code = 1


class InputError(DstackError):
    """What came is not of the form that was wanted."""

    exit_code = 2


class ComposeMalformedError(InputError):
    """A docker-compose or app-compose file cannot be used."""


class EventLogMalformedError(InputError):
    """An event log cannot be read."""


class QuoteMalformedError(InputError):
    """Bytes are not a DCAP quote of a supported kind."""


class CollateralMalformedError(InputError):
    """Collateral is incomplete or not of its form."""


class EvidenceMalformedError(InputError):
    """An attestation blob or its X.509 extensions cannot be read."""


class MeasurementMalformedError(InputError):
    """A measurement document, VM config or OS image cannot be used."""


class MeasurementInputMissingError(MeasurementMalformedError):
    """A value that is measured was not given."""


class MessageMalformedError(InputError):
    """A message on the network is not of its form."""


class KeyMalformedError(InputError):
    """Key material has the wrong size or range."""


class ConfigError(InputError):
    """A setting is missing, unknown or out of range."""


class RefusedError(DstackError):
    """Well formed, and the answer is no."""

    exit_code = 1


class QuoteUntrustedError(RefusedError):
    """A step of quote verification failed.

    Attributes:
        step: Its number in `docs/verification-steps.md`.
    """

    def __init__(self, step: int, message: str) -> None:
        super().__init__(f"step {step}: {message}")
        self.step = step
        self._message = message

    def __reduce__(self) -> tuple[type[QuoteUntrustedError], tuple[int, str]]:
        """Workers send it to whoever asked them."""
        return type(self), (self.step, self._message)


class AppraisalError(RefusedError):
    """The evidence is genuine, but is not what was wanted."""


class ImageRefusedError(AppraisalError):
    """The machine was not started from the OS image that its config names, or its host differs from what it says."""


class KeyReleaseDeniedError(RefusedError):
    """The chain forbids it.

    Attributes:
        rule: The name of the rule that decided.
        block: Number of the block it was decided at; None where the chain did not come to be asked.
    """

    def __init__(self, rule: str, message: str, block: int | None = None) -> None:
        super().__init__(message)
        self.rule = rule
        self.block = block


class SealError(RefusedError):
    """A sealed box does not open with this key, or was sealed for another handover."""


class SignatureUntrustedError(RefusedError):
    """A signature is not by the key it should be by."""


class HandoverRefusedError(RefusedError):
    """A handover message answers nothing that was asked."""


class DecisionLogBrokenError(RefusedError):
    """An entry of a KMS's log of decisions is missing, changed, or not signed by that KMS."""


class KeystoreError(RefusedError):
    """Root keys exist already, are incomplete, or are damaged."""


class PeerRefusedError(RefusedError):
    """The other side answered with an error."""


class UnavailableError(DstackError):
    """Could not ask: neither yes nor no."""

    exit_code = 3


class ChainUnavailableError(UnavailableError):
    """No chain endpoint answered."""


class ChainElsewhereError(ChainUnavailableError):
    """As many chain endpoints as must agree are on another chain than the one wanted."""


class AgentUnavailableError(UnavailableError):
    """No guest agent answers at the socket."""


class CollateralUnavailableError(UnavailableError):
    """No collateral for this platform."""


class CollateralTransientError(CollateralUnavailableError):
    """A source of collateral was down, too slow or too busy: the same question may be answered later."""


class CollateralFatalError(CollateralUnavailableError):
    """A source of collateral answered: no such platform, or statements that are not genuine or go back in time."""


class ImageUnavailableError(UnavailableError):
    """No OS image to compare a machine with."""


class DecisionLogUnavailableError(UnavailableError):
    """The database of a KMS's log of decisions cannot be read or written."""


class PeerUnavailableError(UnavailableError):
    """The other side did not answer."""


class ServiceBusyError(UnavailableError):
    """Too much is asked of this service at once: ask again later."""


class ToolUnavailableError(UnavailableError):
    """A program that we start is missing or died."""
