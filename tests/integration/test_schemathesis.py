"""Requests that schemathesis makes of our OpenAPI document, valid ones and malformed ones.

None may be answered with 5xx, and every answer is one that the document describes. About 1,000
requests; 10,000 with E2E_FULL=1.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import BaseSchema, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.routing import Route

from entrogate_lab.bench.processes import child, free_port
from tests.integration.harness import Running

REQUESTS = 10_000 if os.environ.get("E2E_FULL") == "1" else 1_000
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
UNDESCRIBED = ("/ui", "/docs", "/openapi.json")  # pages for people


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BaseSchema]:
    """A gateway on the scripted upstream, which captures, by what it says of itself."""
    folder = tmp_path_factory.mktemp("api")
    captures = f"ipc://{folder}/captures"
    upstream, gateway = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    with (
        child(
            (
                "entrogate_lab.bench.upstream",
                *("--port", upstream.rpartition(":")[2], "--captures", captures),
            ),
            url=upstream,
            ready="/health",
            log=folder / "upstream.log",
        ),
        child(
            ("entrogate", "serve", "--upstream", upstream, "--port", gateway.rpartition(":")[2]),
            url=gateway,
            ready="/ready",
            log=folder / "gateway.log",
            environment={
                "ENTROGATE_STORE__URL": f"sqlite:///{folder}/store.db",
                "ENTROGATE_UPSTREAM__CAPTURE": captures,
                "ENTROGATE_GATE__POLICY": "balanced",
                "ENTROGATE_GATE__ALLOW_MODE_HEADER": "true",
            },
        ),
    ):
        schema = schemathesis.openapi.from_url(f"{gateway}/openapi.json")
        schema.config.update(base_url=gateway)
        yield schema


@pytest.mark.parametrize("mode", GenerationMode)
def test_requests_of_every_operation(api: BaseSchema, mode: GenerationMode) -> None:
    operations = list(operations_of(api))
    if mode is GenerationMode.NEGATIVE:  # where nothing can be said, nothing can be said wrongly
        operations = [operation for operation in operations if takes_something(operation)]
    examples = REQUESTS // len(GenerationMode) // len(operations)
    session = requests.Session()
    sent = 0

    for operation in operations:

        @settings(
            max_examples=examples,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=[*HealthCheck],  # pyright: ignore[reportArgumentType]
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def answers(case: Case) -> None:
            nonlocal sent
            sent += 1
            case.call_and_validate(session=session, checks=CHECKS)

        answers()
    assert sent > REQUESTS // len(GenerationMode) // 2


def operations_of(api: BaseSchema) -> Iterator[APIOperation]:
    for found in api.get_all_operations():
        assert isinstance(found, Ok), found.err()
        yield found.ok()


def takes_something(operation: APIOperation) -> bool:
    parts = (operation.path_parameters, operation.query, operation.headers, operation.body)
    return any(len(part) > 0 for part in parts)


async def test_every_route_is_in_the_document(gateway: Running) -> None:
    paths = (await gateway.client.get("/openapi.json")).json()["paths"]
    documented = {(path, method) for path, methods in paths.items() for method in methods}
    served = {
        (route.path.replace(":path}", "}"), method.lower())
        for route in gateway.app.routes
        if isinstance(route, Route | APIRoute)
        and route.path != "/"
        and not route.path.startswith(UNDESCRIBED)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert served == documented
