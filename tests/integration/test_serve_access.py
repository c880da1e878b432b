"""`entrogate serve` as a process: whom it listens to, over TLS too, and what it writes down."""

from __future__ import annotations

import ssl
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from sqlalchemy.engine import make_url

from entrogate_lab.bench.processes import free_port
from entrogate_lab.bench.upstream import ScriptedUpstream
from tests.certificates import self_signed
from tests.chaos.stack import Gateways
from tests.integration.harness import CHAT, JSON, ask, calling, follow_up, message_of
from tests.integration.keyed import run

SECRET = "planted-secret-of-the-upstream"
PROMPT = "the planted words of a prompt"
RESULT = "the planted words of a result"


def serve(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end, which comes at once where it refuses to start."""
    command = [sys.executable, "-m", "entrogate", "serve", "--port", str(free_port()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def test_other_machines_need_a_key(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/store.db"
    arguments = ("--host", "192.0.2.7", "--upstream", "http://127.0.0.1:1", "--store", store)
    refused = serve(*arguments)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "entrogate keys create" in refused.stderr
    for allowed in (("--insecure",), ()):
        if not allowed:
            run("create", "--name=x", url=store)
        done = serve(*arguments, *allowed)  # an address that no machine has
        assert "error: cannot listen on 192.0.2.7:" in done.stderr, done.stderr
        assert "Cannot assign requested address" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tls-cert", "cert.pem"), "needs both --tls-cert and --tls-key"),
        (("--tls-cert", "none.pem", "--tls-key", "none.pem"), "cannot be used: "),
    ],
)
def test_tls_that_cannot_be(arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/store.db"
    refused = serve("--upstream", "http://127.0.0.1:1", "--store", store, *arguments)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert refused.stderr.count("\n") == 1


async def test_tls(upstream: ScriptedUpstream, folder: Path) -> None:
    certificate, key = self_signed(folder)
    port, log = free_port(), folder / "gateway.log"
    command = [sys.executable, "-m", "entrogate", "serve", "--port", str(port)]
    command += ["--upstream", upstream.url, "--store", f"sqlite:///{folder}/store.db"]
    command += ["--tls-cert", str(certificate), "--tls-key", str(key)]
    trusting = ssl.create_default_context(cafile=str(certificate))
    with log.open("wb") as out, ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, stderr=out))
        stack.callback(process.terminate)
        async with httpx.AsyncClient(verify=trusting, base_url=f"https://127.0.0.1:{port}") as http:
            while process.poll() is None:
                try:
                    answer = await http.post(CHAT, json=ask({"content": "Hello."}, tools=False))
                    break
                except httpx.ConnectError:
                    continue
            assert answer.status_code == 200
            with pytest.raises(httpx.TransportError):  # plain HTTP
                await http.get(f"http://127.0.0.1:{port}/health")
    assert f"https://127.0.0.1:{port}/v1" in log.read_text()


async def test_clients_with_a_certificate(upstream: ScriptedUpstream, folder: Path) -> None:
    certificate, key = self_signed(folder)
    port = free_port()
    command = [sys.executable, "-m", "entrogate", "serve", "--port", str(port)]
    command += ["--upstream", upstream.url, "--store", f"sqlite:///{folder}/store.db"]
    command += ["--tls-cert", str(certificate), "--tls-key", str(key)]
    command += ["--tls-client-ca", str(certificate)]
    stranger = ssl.create_default_context(cafile=str(certificate))
    known = ssl.create_default_context(cafile=str(certificate))
    known.load_cert_chain(certificate, key)
    url = f"https://127.0.0.1:{port}/health"
    with ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        stack.callback(process.terminate)
        async with httpx.AsyncClient(verify=known) as http:
            while process.poll() is None:
                try:
                    assert (await http.get(url)).status_code == 200
                    break
                except httpx.ConnectError:
                    continue
        assert process.poll() is None
        async with httpx.AsyncClient(verify=stranger) as http:
            with pytest.raises(httpx.TransportError):
                await http.get(url)


async def test_the_upstreams_password_is_not_told(upstream: ScriptedUpstream, folder: Path) -> None:
    """Neither to clients nor to the log: when the model server cannot be reached, or is no vLLM."""
    for path in ("", "/elsewhere"):
        port = free_port() if not path else int(upstream.url.rpartition(":")[2])
        url = f"http://user:{SECRET}@127.0.0.1:{port}{path}"
        store = f"sqlite:///{folder}/store.db"
        log = folder / "gateway.log"
        command = [sys.executable, "-m", "entrogate", "serve", "--upstream", url]
        command += ["--port", str(own := free_port()), "--store", store, "--log-level", "debug"]
        said = ""
        with log.open("wb") as out, ExitStack() as stack:
            process = stack.enter_context(subprocess.Popen(command, stderr=out))
            stack.callback(process.terminate)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{own}") as http:
                while process.poll() is None:
                    try:
                        said += (await http.get("/ready")).text
                        break
                    except httpx.ConnectError:
                        continue
                body = ask({"content": "Hello."}, tools=False)
                answer = await http.post(CHAT, json=body)
                assert answer.status_code == 502
                said += answer.text + (await http.get("/admin/weights")).text
        assert "127.0.0.1" in said
        assert SECRET not in said
        assert "upstream.not_ready" in log.read_text()
        assert SECRET not in log.read_text()


@pytest.mark.both_stores
@pytest.mark.parametrize("level", ["info", "debug"])
async def test_no_secret_is_logged(
    upstream: ScriptedUpstream, folder: Path, level: str, store_url: str
) -> None:
    """Nor, at info, what anybody said; also not when things go wrong."""
    secret = run("create", "--name=x", "--scope=admin", url=store_url)
    secret = secret.splitlines()[-1]
    settings = {"upstream__api_key": SECRET, "serve__log_level": level}
    settings |= {"upstream__url": upstream.url, "store__url": store_url}
    settings |= {"upstream__capture": "off"}
    password = make_url(store_url).password
    assert store_url.startswith("sqlite") or password
    async with Gateways(folder).running(**settings) as gateway:
        headers = {"authorization": f"Bearer {secret}"}
        async with httpx.AsyncClient(base_url=gateway.url, headers=headers) as http:
            body = ask(calling("Ada"), {"content": "Done."}, text=PROMPT)
            message = message_of(await http.post(CHAT, json=body))
            assert (await http.post(CHAT, json=follow_up(body, message, RESULT))).is_success
            for step in ({"fault": "garbage"}, {"fault": "cut"}, {"fault": "error"}):
                broken = ask({"content": "Hello.", **step}, text=PROMPT, stream=True)
                await http.post(CHAT, json=broken)
            await http.post(CHAT, json=body, headers={"authorization": "Bearer wrong-planted"})
            cut = b'{"messages": "' + PROMPT.encode()
            await http.post("/v1/messages", content=cut, headers=JSON)
    written = gateway.log.read_text()
    assert "upstream.ready" in written
    for planted in filter(None, (secret, SECRET, "wrong-planted", password)):
        assert planted not in written
    if level == "info":
        for planted in (PROMPT, RESULT, "Hello."):
            assert planted not in written
