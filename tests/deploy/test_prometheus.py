"""Dashboard and rules before a real Prometheus that reads a real gateway under load.

Needs Debian's package `prometheus`; ENTROGATE_REQUIRE_PROMETHEUS=1 makes its absence a failure.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import runpy
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from entrogate.observe import Metrics
from entrogate_lab.bench.processes import free_port
from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.deploy.load import everything, watched
from tests.deploy.tools import DOCKER, PROMETHEUS, ROOT, check, program
from tests.integration.harness import METRICS_TOKEN, Running, running

REQUIRED = "ENTROGATE_REQUIRE_PROMETHEUS"
DASHBOARD = DOCKER / "grafana" / "dashboards" / "entrogate.json"
# A comparison at the end of an alert; what is left of it must find data on a healthy gateway.
COMPARISON = re.compile(r"\s(?:==|!=|>=|<=|>|<)\s*[\d.]+\s*$")
ABSENT = re.compile(r"^absent\((.+)\)$")
VARIABLES = {
    "$__rate_interval": "1m",
    "$__range": "5m",
    "$instance": ".*",
    "$model": ".*",
    "$tool": ".*",
}


def test_rules_are_sound() -> None:
    promtool = program("promtool", REQUIRED)
    check(promtool, "check", "rules", PROMETHEUS / "rules.yml")
    # Not its contents: the file with the token is where Prometheus runs.
    check(promtool, "check", "config", "--syntax-only", PROMETHEUS / "prometheus.yml")


def test_every_alert_fires_on_its_fault_and_none_without_one() -> None:
    check(program("promtool", REQUIRED), "test", "rules", "rules_test.yml", cwd=PROMETHEUS)
    tested = (PROMETHEUS / "rules_test.yml").read_text(encoding="utf-8")
    untested = [name for name in alerts() if f'alertname="{name}"' not in tested]
    assert untested == []


def test_every_alert_has_a_runbook() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^#+ (Entrogate\w+)$", page, re.MULTILINE))
    assert sections == set(alerts())
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() >= {"summary", "description"}
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"


def test_the_dashboard_is_what_its_script_writes() -> None:
    script = runpy.run_path(str(DOCKER / "grafana" / "dashboard.py"))
    assert DASHBOARD.read_text(encoding="utf-8") == script["written"]()


def test_panels_are_for_people() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] not in ("row", "text"):
            assert panel["title"]
            assert panel["description"].endswith("."), panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"]


def test_every_metric_that_is_queried_exists() -> None:
    """Also without a Prometheus: names of recording rules aside, /metrics has them all."""
    body, _ = Metrics().render("text/plain")
    families = dict(re.findall(r"^# TYPE (\w+) (\w+)", body.decode(), re.MULTILINE))
    known = set(families)
    for name in (name for name, kind in families.items() if kind == "histogram"):
        known |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    queries = [*panel_queries(), *(rule["expr"] for rule in rules())]
    names = {n for q in queries for n in re.findall(r"(?<![\w:])entrogate_\w+", q)}
    assert len(names) > 20
    assert names - known == set()


async def test_every_query_finds_data(tmp_path: Path) -> None:
    async with (
        ScriptedUpstream() as upstream,
        running(watched(upstream.url, tmp_path)) as gateway,
        prometheus(gateway, tmp_path) as client,
    ):
        decided = await everything(gateway)
        assert {d.split(",")[0] for d in decided} == {"suppress", "allow", "replay"}
        await scrapes(client, 2)  # a rate needs two samples, and a rise between them
        await everything(gateway)
        await scrapes(client, 4)  # recording rules, and rules over these
        queries = {query: query for query in panel_queries()}
        queries |= {rule["expr"]: _compared(rule["expr"]) for rule in rules()}
        found = {query: await values(client, asked) for query, asked in queries.items()}
        assert [query for query, data in found.items() if not data] == []
        for rule in alerts().values():
            assert _compared(rule["expr"]) != rule["expr"], rule["expr"]
        by_decision = await values(client, "sum by (decision) (entrogate_tool_calls_total)")
        assert len(by_decision) == 3


def rules() -> Iterator[dict[str, Any]]:
    content = yaml.safe_load((PROMETHEUS / "rules.yml").read_text(encoding="utf-8"))
    for group in content["groups"]:
        yield from group["rules"]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def panel_queries() -> Iterator[str]:
    """Every expression of the dashboard, annotations and variables included, as Grafana asks."""
    content = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    for panel in content["panels"]:
        for target in panel.get("targets", []):
            yield _filled(target["expr"])
    for annotation in content["annotations"]["list"]:
        yield COMPARISON.sub("", _filled(annotation["expr"]))
    for variable in content["templating"]["list"]:
        if variable["type"] == "query":
            query = _filled(variable["query"]["query"])
            selector, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()  # pyright: ignore[reportOptionalMemberAccess]
            yield f"count by ({label}) ({selector})"


def _compared(expression: str) -> str:
    """What an alert looks at, whether it fires or not."""
    return ABSENT.sub(r"\1", COMPARISON.sub("", expression))


def _filled(query: str) -> str:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    assert "$" not in query, query
    return query


async def values(client: httpx.AsyncClient, query: str) -> list[float]:
    """The samples of an instant query that are numbers."""
    answer = (await client.get("/api/v1/query", params={"query": query})).json()
    assert answer["status"] == "success", (query, answer)
    samples = [float(sample["value"][1]) for sample in answer["data"]["result"]]
    return [value for value in samples if not math.isnan(value)]


async def scrapes(client: httpx.AsyncClient, count: int) -> None:
    """Wait until Prometheus has read the gateway ``count`` times more."""
    query = 'count_over_time(up{job="entrogate"}[1h])'

    async def done() -> float:
        return sum(await values(client, query))

    until = await done() + count
    async with asyncio.timeout(60):
        while await done() < until:
            await asyncio.sleep(0.2)


@asynccontextmanager
async def prometheus(gateway: Running, folder: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Prometheus with the configuration that is shipped, but for addresses and intervals."""
    binary = program("prometheus", REQUIRED)
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {
        "scrape_interval": "1s",
        "scrape_timeout": "1s",
        "evaluation_interval": "1s",
    }
    (scrape,) = [job for job in config["scrape_configs"] if job["job_name"] == "entrogate"]
    scrape["static_configs"] = [{"targets": [gateway.url.removeprefix("http://")]}]
    scrape["authorization"] = {"credentials": METRICS_TOKEN}
    config["scrape_configs"] = [scrape]
    shipped = yaml.safe_load((PROMETHEUS / "rules.yml").read_text(encoding="utf-8"))
    for group in shipped["groups"]:
        group["interval"] = "1s"
    (folder / "rules.yml").write_text(yaml.safe_dump(shipped))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{free_port()}"
    with _process(binary, folder, url):
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            async with asyncio.timeout(60):
                while not await _ready(client):
                    await asyncio.sleep(0.1)
            await scrapes(client, 1)
            yield client


@contextmanager
def _process(binary: str, folder: Path, url: str) -> Iterator[None]:
    command = [binary, f"--config.file={folder / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={folder / 'tsdb'}"]
    command += [f"--web.listen-address={url.removeprefix('http://')}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


async def _ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/-/ready")).status_code == 200
    except httpx.TransportError:
        return False
