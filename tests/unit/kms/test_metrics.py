"""What is counted, and what is logged of a request."""

from __future__ import annotations

import json
import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dstack.attestation.appraise import Appraisal
from dstack.errors import KeyReleaseDeniedError, UnavailableError
from dstack.transport.server import Observation
from dstack.values import ReportData
from kms.authorization import authorize
from kms.decisions import Question, Subject
from kms.metrics import Metrics
from tests.unit.kms.conftest import Machine, World, app_machine


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


def test_strangers_are_told_the_same_for_a_second() -> None:
    """However often they ask, a text is made once in that time; then it is of now."""
    now = [100.0]
    metrics = Metrics(lambda: now[0])
    texts = []
    for now[0] in (100.0, 100.99, 101.0):
        texts.append(metrics.recent_text())
        metrics.observe(Observation("GetMeta", 200, 0.02, "id"))

    assert [b'method="GetMeta"' in text for text in texts] == [False, False, True]
    assert b'dstack_kms_requests_total{method="GetMeta",status="200"} 2.0' in texts[2]


def test_our_counters() -> None:
    """Requests are counted by method and status, and timed by method."""
    metrics = Metrics()
    metrics.observe(Observation("GetMeta", 200, 0.02, "id"))
    metrics.observe(Observation("unknown", 400, 3, "id"))

    values = _values(metrics)
    assert values["dstack_kms_requests_total", "GetMeta", "200"] == 1
    assert values["dstack_kms_requests_total", "unknown", "400"] == 1
    assert ("dstack_connections_ended_total", "gave_way") in values
    assert values["dstack_kms_request_seconds_bucket", "0.025", "GetMeta"] == 1
    assert values["dstack_kms_request_seconds_bucket", "0.01", "GetMeta"] == 0


def _decisions() -> dict[tuple[str, ...], float]:
    """By subject, outcome and rule."""
    return {
        (sample.labels["subject"], sample.labels["outcome"], sample.labels["rule"]): sample.value
        for family in text_string_to_metric_families(Metrics().text().decode())
        for sample in family.samples
        if sample.name == "dstack_kms_decisions_total"
    }


def test_decisions_are_counted_by_rule(world: World) -> None:
    """By subject, outcome and rule: a grant, a denial of the chain, evidence that is missing, and could-not-ask."""
    machine, ask = app_machine(), Question(Subject.APP, "request-1")
    before = _decisions()

    authorize(ask, lambda: _appraised(world, machine), world.chain.authorize_app)
    world.chain.compose_hashes.clear()
    with pytest.raises(KeyReleaseDeniedError, match="Compose hash not allowed"):
        authorize(ask, lambda: _appraised(world, machine), world.chain.authorize_app)
    with pytest.raises(KeyReleaseDeniedError, match="No attestation provided"):
        authorize(ask, lambda: world.verifier.appraise_caller(None, vm_config=""), world.chain.authorize_app)
    world.chain.reachable = False
    with pytest.raises(UnavailableError, match="no endpoint answered"):
        authorize(ask, lambda: _appraised(world, machine), world.chain.authorize_app)

    grown = {key: value - before.get(key, 0) for key, value in _decisions().items()}
    assert {key: value for key, value in grown.items() if value} == {
        ("app", "granted", ""): 1,
        ("app", "denied", "COMPOSE_HASH"): 1,
        ("app", "refused", "EVIDENCE_MISSING"): 1,
        ("app", "unavailable", "COULD_NOT_ASK"): 1,
    }


def test_rules_of_others_are_no_labels(world: World) -> None:
    """A rule that somebody else named is counted as OTHER, so that nobody makes new series."""

    def told() -> Appraisal:
        raise KeyReleaseDeniedError("a stranger's word", "no")

    before = _decisions().get(("source", "refused", "OTHER"), 0)

    with pytest.raises(KeyReleaseDeniedError, match="Source KMS is not allowed: no"):
        authorize(Question(Subject.SOURCE, "request-1"), told, world.chain.authorize_kms)

    assert _decisions()["source", "refused", "OTHER"] == before + 1
    assert "stranger" not in Metrics().text().decode()


def _appraised(world: World, machine: Machine) -> Appraisal:
    nothing = ReportData(bytes(64))
    return world.verifier.appraise(machine.evidence(nothing), bound_to=nothing)


def test_request_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """The line is JSON and carries the name that the answer's header carries."""
    with caplog.at_level(logging.INFO, logger="kms.requests"):
        Metrics().observe(Observation("GetAppKey", 400, 0.0123, "0123456789abcdef"))

    line = json.loads(caplog.messages[0])
    line.pop("at")
    assert line == {"request": "0123456789abcdef", "method": "GetAppKey", "status": 400, "milliseconds": 12.3}
