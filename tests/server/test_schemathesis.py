"""Whatever the OpenAPI document allows, and some of what it does not: never a 5xx, only documented answers."""

import warnings
from typing import Any

import httpx
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from server_process import ServerProcess

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]
EXAMPLES_PER_OPERATION = 5


def test_documented_answers_only(server: ServerProcess) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        found: list[Any] = list(schema.get_all_operations())
        operations = [one.ok() for one in found]
        assert len(operations) >= 9
        for operation in operations:
            _run(operation, server)
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert "Traceback" not in server.log
    server.wait_idle()


def _run(operation: schemathesis.APIOperation, server: ServerProcess) -> None:  # type: ignore[name-defined]
    @settings(
        max_examples=EXAMPLES_PER_OPERATION,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    @given(case=operation.as_strategy(), data=st.data())
    def check(case: schemathesis.Case, data: st.DataObject) -> None:
        if isinstance(case.body, dict):
            case.body["max_tokens"] = data.draw(st.integers(1, 4))
            case.body.pop("max_completion_tokens", None)
        answer = case.call(base_url=server.url, timeout=30)
        case.validate_response(answer, checks=CHECKS)

    check()
