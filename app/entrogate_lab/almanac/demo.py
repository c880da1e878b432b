"""`entrogate demo`: the same tasks with the gate off and on, one table, one page."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click
import httpx

from entrogate.errors import ConfigError, UpstreamProtocol, UpstreamUnavailable
from entrogate.gate.policy import load_policy

if TYPE_CHECKING:
    from entrogate_lab.almanac.exhibits import Exhibits

BUNDLED_MODEL = Path(__file__).with_name("model")
MODES = ("observe", "enforce")
_NAME = "almanac"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """The options of the command."""

    tasks: int
    seed: int
    policy: str
    model: Path | None
    base_url: str | None
    api_key: str | None
    concurrency: int
    report: Path
    json_file: Path | None
    keep: bool


@click.command()
@click.option("--tasks", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Which held-out tasks.")
@click.option("--policy", default="balanced", show_default=True, help="A bundled name or a file.")
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of a model that `entrogate almanac build` made (default: the bundled one).",
)
@click.option("--base-url", help="A running Entrogate with --allow-mode-header; starts none.")
@click.option("--api-key", help="For --base-url.")
@click.option("--concurrency", type=click.IntRange(min=1), default=16, show_default=True)
@click.option(
    "--report",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-report"),
    show_default=True,
    help="Folder for the page, the JSON file, the logs and the store.",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--keep", is_flag=True, help="Leave gateway and vLLM running until Ctrl-C.")
def demo(**options: Any) -> None:
    """Show the gate at work: an agent on the same tasks in mode observe and in mode enforce."""
    plan = _Plan(**options)
    _check(plan)
    line = _Line()
    with ExitStack() as stack:
        if plan.base_url is None:
            root, name, world_seed = _start(plan, stack, line)
        else:
            root = plan.base_url.rstrip("/").removesuffix("/v1")
            name, world_seed = _served_model(root, plan.api_key), 0
        policy = _policy(root, plan.api_key)
        line.say(f"Ready: {root}, model {name}, policy {policy['name']}")
        result, exhibits = _run(plan, root, name, world_seed, line)
        about = {"policy": policy["name"], "policy_version": policy["version"]}
        _publish(plan, result, exhibits, about)
        if plan.base_url is None:
            _tell(root, plan.keep)


def _start(plan: _Plan, stack: ExitStack, line: _Line) -> tuple[str, str, int]:
    """Start vLLM and the gateway: base URL, model name, seed of the model's world."""
    from entrogate_lab.almanac.serving import serving

    model = plan.model or BUNDLED_MODEL
    world_seed = _world_seed(model)
    line.say(f"Starting vLLM and the gateway (logs in {plan.report}/)")
    child = serving(model, name=_NAME, policy=plan.policy, folder=plan.report, waiting=line.waiting)
    return stack.enter_context(child), _NAME, world_seed


def _run(
    plan: _Plan, root: str, name: str, world_seed: int, line: _Line
) -> tuple[dict[str, Any], Exhibits]:
    from entrogate_lab.almanac.evaluate import evaluate
    from entrogate_lab.almanac.exhibits import collect

    line.say(f"{plan.tasks} held-out tasks, in mode observe, then in mode enforce")

    async def work() -> tuple[dict[str, Any], Exhibits]:
        result = await evaluate(
            f"{root}/v1",
            model=name,
            tasks=plan.tasks,
            seed=plan.seed,
            modes=MODES,
            concurrency=plan.concurrency,
            api_key=plan.api_key,
            progress=line.evaluating,
            world_seed=world_seed,
            feedback=True,
        )
        records = result.pop("records")
        return result, await collect(root, records["observe"], api_key=plan.api_key)

    return asyncio.run(work())


def _publish(
    plan: _Plan, result: dict[str, Any], exhibits: Exhibits, about: dict[str, Any]
) -> None:
    from entrogate_lab.almanac import report

    report.write(plan.report, result, exhibits, about=about)
    if plan.json_file is not None:
        plan.json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    click.echo(f"\n{report.text_table(result['modes'])}\n")
    click.echo(f"Report: {plan.report}/index.html and {plan.report}/report.json")


def _tell(root: str, keep: bool) -> None:
    """How to go on from here; with ``keep``, wait for Ctrl-C or SIGTERM."""
    if not keep:
        click.echo(
            "To try it yourself: entrogate serve --model almanac --policy balanced\n"
            "and point any OpenAI client at base_url http://127.0.0.1:8400/v1"
        )
        return
    click.echo(f"Running on until Ctrl-C. OPENAI_BASE_URL={root}/v1 OPENAI_API_KEY=none")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        signal.pause()
    except KeyboardInterrupt:
        click.echo("Stopping.", err=True)


def _check(plan: _Plan) -> None:
    """Refuse what would fail only after minutes, and make the report folder."""
    if plan.base_url is not None and (plan.model is not None or plan.keep):
        raise click.UsageError("--model and --keep are for a server that the demo starts")
    if find_spec("openai") is None:
        raise ConfigError("the demo's agent needs openai: pip install 'openai>=2.25'")
    if plan.json_file is not None and not plan.json_file.absolute().parent.is_dir():
        raise click.UsageError(f"no folder {plan.json_file.absolute().parent}")
    if plan.base_url is None:
        load_policy(plan.policy)
    try:
        plan.report.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the report folder {plan.report}: {error.strerror}"
        ) from error


def _world_seed(model: Path) -> int:
    """The seed of the world that the model was built for."""
    about = model / "almanac.json"
    if not about.is_file():
        raise ConfigError(f"{model} is no Almanac model: no almanac.json (entrogate almanac build)")
    try:
        return int(json.loads(about.read_text(encoding="utf-8"))["seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"cannot read the seed from {about}: {error}") from error


def _served_model(root: str, api_key: str | None) -> str:
    models = _get(root, "/v1/models", api_key).get("data")
    if not models:
        raise UpstreamProtocol(f"{root}/v1/models lists no model")
    return str(models[0]["id"])


def _policy(root: str, api_key: str | None) -> dict[str, Any]:
    """Name and version of the policy that the gateway follows."""
    policy = _get(root, "/ready", api_key).get("policy")
    if not isinstance(policy, dict):
        raise UpstreamProtocol(f"{root} is not Entrogate: its /ready names no policy")
    return cast("dict[str, Any]", policy)


def _get(root: str, path: str, api_key: str | None) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        response = httpx.get(f"{root}{path}", headers=headers, timeout=30, trust_env=False)
        body = response.json()
    except httpx.HTTPError as error:
        raise UpstreamUnavailable(f"no answer from {root}{path}: {error}") from error
    except ValueError as error:
        raise UpstreamProtocol(f"{root}{path} did not answer with JSON") from error
    if response.status_code != 200 or not isinstance(body, dict):
        raise UpstreamUnavailable(f"{root}{path} answered {response.status_code}")
    return cast("dict[str, Any]", body)


class _Line:
    """Progress on stderr: one line that is rewritten on a terminal, else a line now and then."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._next = 0.0
        self._open = False

    def say(self, text: str) -> None:
        self.end()
        click.echo(f"==> {text}", err=True)

    def end(self) -> None:
        if self._open:
            click.echo(err=True)
        self._open = False

    def waiting(self, seconds: float, line: str) -> None:
        self._tick(f"{seconds:4.0f} s  {line}", every=10.0)

    def evaluating(self, mode: str, done: int, total: int) -> None:
        self._tick(f"{mode}: {done}/{total} tasks", every=5.0, last=done == total)

    def _tick(self, text: str, *, every: float, last: bool = False) -> None:
        now = time.monotonic()
        if not last and now < self._next:
            return
        self._next = now + (0.2 if self._terminal else every)
        if self._terminal:
            click.echo(f"\r\x1b[K    {text[:90]}", err=True, nl=False)
            self._open = True
            if last:
                self.end()
        else:
            click.echo(f"    {text[:90]}", err=True)
