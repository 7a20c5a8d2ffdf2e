"""What is counted, and what is logged of a request."""

from __future__ import annotations

import json
import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dstack.transport.server import Observation
from kms.metrics import Metrics


def _values(metrics: Metrics) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_upstreams_counters() -> None:
    """Every answer of the three attested methods is counted, and those of 400 and more once again; nothing else is."""
    metrics = Metrics()
    for method, status in (
        ("GetAppKey", 200),
        ("GetKmsKey", 400),
        ("SignCert", 500),
        ("GetMeta", 400),
        ("GetTempCaCert", 200),
    ):
        metrics.observe(Observation(method, status, 0.02, "id"))

    values = _values(metrics)
    assert values["dstack_kms_attestation_requests_total",] == 3
    assert values["dstack_kms_attestation_failures_total",] == 2
    lines = metrics.text().decode().splitlines()
    for name in ("dstack_kms_attestation_requests_total", "dstack_kms_attestation_failures_total"):
        assert f"# TYPE {name} counter" in lines
        assert any(line.startswith(f"# HELP {name} ") for line in lines)


def test_our_counters() -> None:
    """Requests are counted by method and status, and timed by method."""
    metrics = Metrics()
    metrics.observe(Observation("GetMeta", 200, 0.02, "id"))
    metrics.observe(Observation("unknown", 400, 3, "id"))

    values = _values(metrics)
    assert values["dstack_kms_requests_total", "GetMeta", "200"] == 1
    assert values["dstack_kms_requests_total", "unknown", "400"] == 1
    assert values["dstack_kms_request_seconds_bucket", "0.025", "GetMeta"] == 1
    assert values["dstack_kms_request_seconds_bucket", "0.01", "GetMeta"] == 0


def test_request_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """The line is JSON and carries the name that the answer's header carries."""
    with caplog.at_level(logging.INFO, logger="kms.requests"):
        Metrics().observe(Observation("GetAppKey", 400, 0.0123, "0123456789abcdef"))

    line = json.loads(caplog.messages[0])
    line.pop("at")
    assert line == {"request": "0123456789abcdef", "method": "GetAppKey", "status": 400, "milliseconds": 12.3}
