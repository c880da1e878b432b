"""A scripted upstream over real sockets that speaks vLLM 0.32's dialect.

``python -m entrogate_lab.bench.upstream --port P`` or, in a test, ``ScriptedUpstream``. What it
says is written in the request (see script.py), so one server serves every test, and the answers
to equal bodies are rendered once. ``GET /_stats`` tells what it saw, ``POST /_reset`` forgets it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

from aiohttp import web

from entrogate.engine.arguments import Asked
from entrogate_lab.bench import dialect
from entrogate_lab.bench.engine_side import Captured, EngineSide, capture_turns, split_request
from entrogate_lab.bench.prompts import position_in, render_message
from entrogate_lab.bench.refusals import invalid_json, lora_refusal, refusal
from entrogate_lab.bench.script import (
    CALL,
    END,
    START,
    Step,
    Turn,
    Vocabulary,
    generate,
)
from entrogate_lab.bench.sending import HEADERS, Answer, json_response, send
from entrogate_lab.bench.stats import Stats

_MOST_CHOICES = 64  # vLLM's own limit is 16384
_RENDERED_LIMIT = 512
_MASK = -50.0  # a logit bias below this masks a token


class ScriptedUpstream:
    """The server; ``url`` is known after ``start``. Leaving the context stops it."""

    def __init__(
        self,
        *,
        model: str = "scripted",
        max_model_len: int = 8192,
        api_key: str | None = None,
        max_lora_rank: int | None = 16,
        engine: bool = False,
        captures: str | None = None,
    ) -> None:
        """``max_lora_rank`` None: a server that was started without LoRA.

        ``engine``: it captures and gates as a vLLM with the plugin does, and sends to the address
        ``captures`` (default: one of its own, which the attribute then holds).
        """
        self.stats = Stats()
        self.url = ""
        self.refuse_completions = False  # answers /v1/completions with an error of the engine
        self.completions = asyncio.Event()  # answers to /v1/completions wait until it is set
        self.completions.set()
        self.go_on = asyncio.Event()  # ends the fault `stall`: the rest of the answer is sent
        self.adapters: dict[str, str] = {}  # the folders of the LoRAs that are loaded, by name
        self._model = model
        self._max_model_len = max_model_len
        self._api_key = api_key
        self._max_lora_rank = max_lora_rank
        self._vocabulary = Vocabulary()
        self._rendered: dict[tuple[str, bytes], Answer] = {}
        self._runner: web.AppRunner | None = None
        self._has_engine = engine or captures is not None
        self._engine: EngineSide | None = None
        self.captures = captures or "off"

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 takes a free one."""
        if self._has_engine and self._engine is None:
            self._engine = EngineSide(None if self.captures == "off" else self.captures)
            self.captures = self._engine.address
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/v1/chat/completions", self._generate)
        app.router.add_post("/v1/completions", self._generate)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/detokenize", self._detokenize)
        if self._max_lora_rank is not None:
            app.router.add_post("/v1/load_lora_adapter", self._load_adapter)
            app.router.add_post("/v1/unload_lora_adapter", self._unload_adapter)
        app.router.add_get("/_stats", self._stats)
        app.router.add_post("/_reset", self._reset)
        app.router.add_route("*", "/{path:.*}", self._no_route)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        bound = self._runner.addresses[0][1]
        self.url = f"http://{host}:{bound}"

    async def aclose(self) -> None:
        """Stop serving and let go of the capture address; a second call does nothing."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        if (refused := self._unauthorised(request)) is not None:
            return refused
        self.stats.requests += 1
        self.stats.paths[request.path] += 1
        self.stats.bodies.append(raw)
        self.stats.traceparents.append(request.headers.get("traceparent"))
        if request.path == "/v1/completions" and await self._completions_fail():
            error = dialect.error_body("EngineCore died", "InternalServerError", 500)
            return json_response(error, 500)
        asked: Asked | None = None
        key = (request.path, raw)
        try:
            if self._engine is not None:
                key, asked = split_request(request.path, raw)
        except ValueError as error:
            return json_response(dialect.error_body(str(error), "BadRequestError", 400), 400)
        answer = self._rendered.get(key)
        if answer is None:
            try:
                answer = self._answer(request.path, raw)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                # vLLM refuses what it cannot read field by field; here one word is enough.
                return json_response(dialect.error_body(repr(error), "BadRequestError", 400), 400)
            if isinstance(answer, web.Response):
                return answer
            if len(self._rendered) >= _RENDERED_LIMIT:
                self._rendered.pop(next(iter(self._rendered)))
            self._rendered[key] = answer
        self.stats.open += 1
        following = None
        if self._engine is not None and asked is not None:
            following = self._engine.begin(asked, answer.captured, answer.step)
        whole = False
        try:
            response = await send(request, answer, self.go_on)
            whole = True
            return response
        except (asyncio.CancelledError, ConnectionResetError):
            self.stats.aborted += 1
            raise
        finally:
            self.stats.open -= 1
            if self._engine is not None and following is not None:
                self._engine.end(following, whole=whole)

    async def _completions_fail(self) -> bool:
        return await self.completions.wait() and self.refuse_completions

    def _unauthorised(self, request: web.Request) -> web.Response | None:
        expected = self._api_key
        if expected is None or request.headers.get("Authorization") == f"Bearer {expected}":
            return None
        return json_response(dialect.compact({"error": "Unauthorized"}), 401)

    def _answer(self, path: str, raw: bytes) -> Answer | web.Response:
        try:
            body = json.loads(raw)
        except ValueError:
            return json_response(invalid_json(), 400)
        chat = path.endswith("/chat/completions")
        refused = refusal(
            body,
            chat=chat,
            models=(self._model, *self.adapters),
            max_model_len=self._max_model_len,
            vocabulary=self._vocabulary.size,
        )
        if refused is not None:
            return json_response(refused.body, refused.status)
        prompt = self._chat_prompt(body) if chat else self._plain_prompt(body)
        turns = self._sample(body, prompt, chat=chat)
        turns, captured = self._capture(body, turns, prompt, chat=chat)
        step = turns[0].step
        if (failed := _failure(step)) is not None:
            return failed
        wish = _withhold(dialect.Wish.of(body, chat=chat), step)
        model = str(body.get("model") or self._model)
        prompt_ids = self._vocabulary.encode(prompt)
        renderer = dialect.Renderer(wish, self._vocabulary, model=model, prompt=prompt_ids)
        if wish.stream:
            events = renderer.chat_events(turns) if chat else renderer.completion_events(turns)
            if step.fault == "lost_token":
                del events[len(events) // 2]
            return Answer(parts=events, step=step, stream=True, captured=captured)
        whole = renderer.chat_body(turns) if chat else renderer.completion_body(turns)
        return Answer(parts=[whole], step=step, stream=False, captured=captured)

    def _sample(self, body: dict[str, Any], prompt: str, *, chat: bool) -> list[Turn]:
        """What is said, choice by choice."""
        choices, partial = position_in(prompt)
        # Without tools a model does not call: it says what it would say with the token masked.
        masked = self._masked(body) or (chat and not body.get("tools"))
        n = body.get("n") or 1
        if n > _MOST_CHOICES:
            raise ValueError(f"n must be at most {_MOST_CHOICES}, got {n}.")
        return [
            generate(
                choices[i % len(choices)],
                self._vocabulary,
                parse_calls=_parses_calls(body, chat=chat),
                masked=masked,
                partial=partial,
                limit=_limit(body),
            )
            for i in range(n)
        ]

    def _capture(
        self, body: dict[str, Any], turns: list[Turn], prompt: str, *, chat: bool
    ) -> tuple[list[Turn], tuple[Captured, ...]]:
        """What the engine side, if there is one, makes of the turns, and what it measures."""
        if self._engine is None:
            return turns, ()
        step, limit = turns[0].step, _limit(body)
        _, partial = position_in(prompt)

        def masked_on(kept: str, count: int) -> Turn:
            return generate(
                step,
                self._vocabulary,
                parse_calls=_parses_calls(body, chat=chat),
                masked=True,
                partial=partial + kept,
                limit=None if limit is None else limit - count,
            )

        prompt_ids = self._vocabulary.encode(prompt)
        return capture_turns(body, turns, prompt_ids, self._vocabulary, masked_on)

    def _masked(self, body: dict[str, Any]) -> bool:
        bias = cast("dict[str, float]", body.get("logit_bias") or {})
        call_id = str(self._vocabulary.id(CALL))
        return bias.get(call_id, 0.0) < _MASK or CALL in (body.get("bad_words") or ())

    def _chat_prompt(self, body: dict[str, Any]) -> str:
        parts = [f"{START}system\n{json.dumps(t)}{END}\n" for t in body.get("tools") or ()]
        parts += [render_message(message) for message in body["messages"]]
        if body.get("continue_final_message"):
            return "".join(parts).removesuffix(f"{END}\n")
        return "".join(parts) + f"{START}assistant\n"

    def _plain_prompt(self, body: dict[str, Any]) -> str:
        prompt = body["prompt"]
        return prompt if isinstance(prompt, str) else self._vocabulary.decode(prompt)

    async def _models(self, request: web.Request) -> web.Response:
        if (refused := self._unauthorised(request)) is not None:
            return refused
        permission = {"id": "modelperm-b71fe5c9f8fe90f2", "object": "model_permission"}
        permission |= {"created": 1795374377, "allow_create_engine": False, "allow_sampling": True}
        permission |= {"allow_logprobs": True, "allow_search_indices": False, "allow_view": True}
        permission |= {"allow_fine_tuning": False, "organization": "*", "group": None}
        card = {"id": self._model, "object": "model", "created": 1795374377, "owned_by": "vllm"}
        card |= {"root": self._model, "parent": None, "max_model_len": self._max_model_len}
        card |= {"permission": [permission | {"is_blocking": False}]}
        adapters = [
            card | {"id": name, "root": folder, "parent": self._model, "max_model_len": None}
            for name, folder in self.adapters.items()
        ]
        return json_response(dialect.compact({"object": "list", "data": [card, *adapters]}))

    async def _load_adapter(self, request: web.Request) -> web.Response:
        body = await request.json()
        name, folder = body["lora_name"], body["lora_path"]
        self.stats.paths[request.path] += 1
        if name in self.adapters:
            message = f"The lora adapter '{name}' has already been loaded."
            return json_response(dialect.error_body(message, "InvalidUserInput", 400), 400)
        refused = lora_refusal(Path(folder), max_rank=self._max_lora_rank or 0)
        if refused is not None:
            return json_response(refused.body, refused.status)
        self.adapters[name] = folder
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload_adapter(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        self.stats.paths[request.path] += 1
        if self.adapters.pop(name, None) is None:
            message = f"The lora adapter '{name}' cannot be found."
            return json_response(dialect.error_body(message, "NotFoundError", 404), 404)
        self._rendered.clear()  # what runs goes on, but the name is gone
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _no_route(self, _: web.Request) -> web.Response:
        return json_response(dialect.compact({"detail": "Not Found"}), 404)

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(headers=HEADERS)

    async def _version(self, _: web.Request) -> web.Response:
        return json_response(dialect.compact({"version": "0.32.0"}))

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await _object(request)
        if body is None or not ("messages" in body or isinstance(body.get("prompt"), str)):
            return json_response(invalid_json(), 400)
        text = self._chat_prompt(body) if "messages" in body else body["prompt"]
        tokens = self._vocabulary.encode(text)
        answer = {"count": len(tokens), "max_model_len": self._max_model_len}
        return json_response(dialect.compact(answer | {"tokens": tokens, "token_strs": None}))

    async def _detokenize(self, request: web.Request) -> web.Response:
        body = await _object(request)
        tokens: Any = None if body is None else body.get("tokens")
        ids: list[Any] = cast("list[Any]", tokens) if isinstance(tokens, list) else [None]
        if not all(type(each) is int for each in ids):
            return json_response(invalid_json(), 400)
        return json_response(dialect.compact({"prompt": self._vocabulary.decode(ids)}))

    async def _stats(self, _: web.Request) -> web.Response:
        return json_response(dialect.compact(self.stats.as_dict()))

    async def _reset(self, _: web.Request) -> web.Response:
        self.stats = Stats(open=self.stats.open)
        return json_response(b"{}")


async def _object(request: web.Request) -> dict[str, Any] | None:
    try:
        body = await request.json()
    except ValueError:
        return None
    return cast("dict[str, Any]", body) if isinstance(body, dict) else None


def _limit(body: dict[str, Any]) -> int | None:
    return body.get("max_completion_tokens") or body.get("max_tokens")


def _parses_calls(body: dict[str, Any], *, chat: bool) -> bool:
    return chat and bool(body.get("tools")) and body.get("tool_choice") != "none"


def _failure(step: Step) -> web.Response | None:
    """The error that a step asks for instead of an answer."""
    if step.fault == "plain_error":
        return web.Response(text="Internal Server Error", status=step.status)
    if step.fault == "error":
        kind = "BadRequestError" if step.status == 400 else "InternalServerError"
        return json_response(dialect.error_body("scripted error", kind, step.status), step.status)
    return None


def _withhold(wish: dialect.Wish, step: Step) -> dialect.Wish:
    if step.fault == "no_logprobs":
        return replace(wish, logprobs=False)
    return replace(wish, token_ids=False) if step.fault == "no_token_ids" else wish


async def _serve(arguments: argparse.Namespace) -> None:
    upstream = ScriptedUpstream(
        model=arguments.model, api_key=arguments.api_key, captures=arguments.captures
    )
    await upstream.start(port=arguments.port)
    sys.stdout.write(f"{upstream.url}\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


def main() -> None:
    """Print the URL on one line, then serve until interrupted."""
    parser = argparse.ArgumentParser(description="A scripted server that speaks vLLM's dialect.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--model", default="scripted")
    parser.add_argument("--api-key", default=None)
    parser.add_argument("--captures", help="capture and gate as with the plugin, and send there")
    try:
        import uvloop

        uvloop.run(_serve(parser.parse_args()))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
