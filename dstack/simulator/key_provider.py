"""NOT PRODUCTION. A local key provider made of software: where a real one is an SGX enclave (guest.md 5.5)."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from dstack.attestation.collateral import Collateral
from dstack.attestation.key_provider import provider_report_data
from dstack.attestation.quote import Quote, TdReport
from dstack.attestation.roots import TrustedRoots, simulated_root
from dstack.attestation.verify import verify_quote
from dstack.errors import AppraisalError, DstackError, MessageMalformedError
from dstack.keys.anonymous_box import KEY_SIZE, seal_anonymously
from dstack.simulator.pki import SimulatedPki
from dstack.simulator.quoting import Enclave, make_enclave_quote
from dstack.values import ReportData
from dstack.wire.key_provider import (
    HEAD_SIZE,
    SealingKeyAnswer,
    SealingKeyRequest,
    frame,
    framed_size,
    parse_request,
    serialise_answer,
)

_SECONDS = 30.0


def derive_sealing_key(enclave_key: bytes, measurements: bytes) -> bytes:
    """What a provider gives one machine.

    Args:
        enclave_key: What only this enclave on this processor can derive.
        measurements: MRTD and RTMR0 to RTMR3 of the machine, one after the other.

    Returns:
        32 bytes.
    """
    return sha256(enclave_key + measurements).digest()


@dataclass(frozen=True, slots=True)
class EnclaveCollateral:
    """What a simulated maker says now of the enclaves on its platform; a `CollateralSource`."""

    pki: SimulatedPki
    clock: Callable[[], datetime]

    def collateral_for(self, _quote: Quote) -> Collateral:
        """The same for every quote, and somewhat older than a question that is under way."""
        return self.pki.collateral(max(self.pki.born_at, self.clock() - timedelta(minutes=1)), sgx=True)


@dataclass(frozen=True, slots=True)
class SimulatedKeyProvider:
    """Gives keys to the machines of one simulated platform.

    Attributes:
        pki: The platform that both the provider and the machines are on.
        enclave: What the provider's quotes say it is.
        enclave_key: See `derive_sealing_key`.
        clock: Now, aware.
    """

    pki: SimulatedPki
    enclave: Enclave
    enclave_key: bytes
    clock: Callable[[], datetime]

    def answer(self, request: SealingKeyRequest) -> SealingKeyAnswer:
        """Verify a machine's quote, and seal its key to the key in the report data.

        Raises:
            DstackError: The quote is not genuine, or not that of a TD.
        """
        roots, at = TrustedRoots((simulated_root(self.pki.root_der),)), self.clock()
        verified = verify_quote(request.quote, self.pki.collateral(at), roots=roots, at=at)
        body = verified.quote.body
        if not isinstance(body, TdReport):
            raise AppraisalError("key provider: want the quote of a TD, got that of an SGX enclave")
        measurements = body.mr_td + body.rtmr0 + body.rtmr1 + body.rtmr2 + body.rtmr3
        key = derive_sealing_key(self.enclave_key, measurements)
        box = seal_anonymously(body.report_data[:KEY_SIZE], key)
        bound = ReportData(provider_report_data(box))
        return SealingKeyAnswer(box, make_enclave_quote(self.pki, enclave=self.enclave, report_data=bound))

    @contextmanager
    def serving(self) -> Iterator[int]:
        """For the length of a `with` block answer on loopback, at the port that is given."""
        with _Server(("127.0.0.1", 0), _handler(self)) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield server.server_address[1]
            finally:
                server.shutdown()
                thread.join()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


def _handler(provider: SimulatedKeyProvider) -> type[socketserver.StreamRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        timeout = _SECONDS

        def handle(self) -> None:
            """Answer one question; who is refused is told nothing, as by the real one."""
            try:
                size = framed_size(self.rfile.read(HEAD_SIZE))
                content = self.rfile.read(size)
                if len(content) != size:
                    raise MessageMalformedError(f"frame: want {size} bytes, got {len(content)}")
                self.wfile.write(frame(serialise_answer(provider.answer(parse_request(content)))))
            except (DstackError, OSError):
                return

    return Handler
