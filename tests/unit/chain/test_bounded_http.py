"""One exchange with somebody who is not trusted to keep it short."""

from __future__ import annotations

import gzip
from contextlib import closing

import pytest
from fastapi import FastAPI, Request, Response

from dstack.chain.bounded_http import BoundedClient, EndpointError
from dstack.errors import PeerUnavailableError
from dstack.transport.client import PrpcClient
from dstack.transport.listener import Listener
from dstack.wire.kms import GetMetaResponse

PACKED = gzip.compress(bytes(1 << 20))


def test_a_packed_answer_is_refused_before_it_is_unpacked() -> None:
    """A limit on what is received says nothing of what it becomes: nobody is asked to pack, and who does is refused."""
    asked: list[str | None] = []
    app = FastAPI()

    def answer(request: Request) -> Response:
        asked.append(request.headers.get("accept-encoding"))
        return Response(PACKED, headers={"content-encoding": "gzip"})

    app.add_api_route("/{path:path}", answer, methods=["POST"], response_model=None)
    with (
        Listener(app).running() as listener,
        closing(BoundedClient(seconds=10, limit=2 << 20, connections=1)) as client,
        PrpcClient(f"http://127.0.0.1:{listener.port}") as prpc,
    ):
        with pytest.raises(EndpointError, match="want a plain answer, got one packed as 'gzip'"):
            client.exchange("POST", f"http://127.0.0.1:{listener.port}/", b"{}")
        with pytest.raises(PeerUnavailableError, match="want a plain answer, got one packed as 'gzip'"):
            prpc.call("GetMeta", None, GetMetaResponse)

    assert asked == ["identity", "identity"]
