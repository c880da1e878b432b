"""Reference pages of the documentation site, made from the code while mkdocs builds.

A hook of `mkdocs.yml`: nothing it makes is kept in the repository, so nothing can be out of date.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import click
from fastapi import FastAPI
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from entrogate import __version__
from entrogate.cli import command_line
from entrogate.gate.schema import Policy
from entrogate.serve.app import TITLE, add_routes


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by mkdocs once it has listed `docs/`."""
    for name, make in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=make()))
    return files


def command_page() -> str:
    """Every command with its help and options, as click knows them."""
    root = command_line()
    lines = ["# Command line", ""]
    for path, command in _commands(root, ()):
        name = " ".join(("entrogate", *path))
        context = click.Context(command, info_name=name)
        lines += [f"{'#' * (len(path) + 1)} {name}", ""] if path else []
        lines += [(command.help or "").strip().replace("\b\n", ""), ""]
        if isinstance(command, click.Group):
            continue
        lines += [
            "```",
            *(piece.strip() for piece in command.get_usage(context).splitlines()),
            "```",
            "",
        ]
        options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
        if options:
            lines += ["| option | default | meaning |", "|---|---|---|"]
            lines += [_option_row(option, context) for option in options]
            lines.append("")
    return "\n".join(lines)


def _commands(
    command: click.Command, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            if found is not None:
                yield from _commands(found, (*path, name))


def _option_row(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    kind = option.make_metavar(context)
    if not option.is_flag and kind:
        names += f" {_cell(kind)}"
    default = option.to_info_dict()["default"]
    shown = "" if default in (None, False, ()) or callable(default) else f"`{default}`"
    meaning = ("Required. " if option.required else "") + (option.help or "")
    return f"| {names} | {_cell(shown)} | {_cell(meaning)} |"


def policy_page() -> str:
    """The policy's JSON schema, part by part."""
    schema = Policy.model_json_schema()
    lines = [
        "# Policy schema",
        "",
        "The keys as the loader checks them; what they do stands in [Policies](../policy.md).",
        "Unknown keys are errors.",
        "",
    ]
    for name, part in [("Policy", schema), *schema["$defs"].items()]:
        lines += [f"## {name}", "", part.get("description", "").replace("\n", " "), ""]
        if "enum" in part:
            lines += [", ".join(f"`{value}`" for value in part["enum"]), ""]
            continue
        lines += ["| key | value | default |", "|---|---|---|"]
        required = part.get("required", ())
        for key, field in part["properties"].items():
            default = "required" if key in required else _default(field)
            lines.append(f"| `{key}` | {_cell(_kind(field))} | {default} |")
        lines.append("")
    return "\n".join(lines)


def http_page() -> str:
    """Every operation of the OpenAPI document."""
    app = FastAPI(title=TITLE, version=__version__, docs_url=None, redoc_url=None)
    add_routes(app)
    document = app.openapi()
    lines = [
        "# HTTP API, operation by operation",
        "",
        "What a running gateway says of itself under `/openapi.json`, and shows under `/docs`.",
        "What it means stands in [HTTP API](../api.md).",
        "",
    ]
    for tag in document["tags"]:
        lines += [f"## {tag['name']}", "", tag["description"], ""]
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation["tags"]:
                    lines += _operation_lines(f"{method.upper()} {path}", operation, document)
    return "\n".join(lines)


def _operation_lines(name: str, operation: dict[str, Any], document: dict[str, Any]) -> list[str]:
    lines = [f"### {name}", "", operation["summary"], "", operation.get("description", ""), ""]
    rows = [_parameter_row(_resolved(each, document)) for each in operation.get("parameters", ())]
    body = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if body is not None:
        rows += _body_rows(_resolved(body["schema"], document), document)
    if rows:
        lines += ["| name | in | value | meaning |", "|---|---|---|---|", *rows, ""]
    answer = operation["responses"]["200"]
    kinds = ", ".join(f"`{kind}`" for kind in answer.get("content", {}))
    lines += [f"200: {kinds}. {answer.get('description', '')}", ""]
    return lines


def _parameter_row(each: dict[str, Any]) -> str:
    name = f"`{each['name']}`" + (" (required)" if each.get("required") else "")
    meaning = _cell(each.get("description", ""))
    return f"| {name} | {each['in']} | {_cell(_shape(each['schema']))} | {meaning} |"


def _body_rows(schema: dict[str, Any], document: dict[str, Any]) -> list[str]:
    parts = [_resolved(part, document) for part in schema.get("allOf", [schema])]
    required = {name for part in parts for name in part.get("required", ())}
    rows: list[str] = []
    for part in parts:
        for key, field in part.get("properties", {}).items():
            name = f"`{key}`" + (" (required)" if key in required else "")
            meaning = _cell(field.get("description", ""))
            rows.append(f"| {name} | body | {_cell(_shape(field))} | {meaning} |")
    return rows


def _resolved(part: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in part:
        return part
    found: Any = document
    for step in part["$ref"].removeprefix("#/").split("/"):
        found = found[step]
    return found


def _shape(schema: dict[str, Any]) -> str:
    """What a value of a request may be, in a few words."""
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    for name in ("oneOf", "anyOf"):
        if name in schema:
            return " or ".join(dict.fromkeys(_shape(each) for each in schema[name]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "anything")
    kind = " or ".join(kind) if isinstance(kind, list) else kind
    if kind == "array":
        return f"list of {_shape(schema.get('items', {}))}"
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "maxLength": "length ≤"}
    return " ".join([kind, *(f"{s} {schema[k]}" for k, s in limits.items() if k in schema)])


def _kind(field: dict[str, Any]) -> str:
    """What a value may be, in a few words."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(_kind(each) for each in field["anyOf"])
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "object":
        return f"names, each with {_kind(field['additionalProperties'])}"
    limits = {"minimum": "≥", "maximum": "≤", "pattern": "matching"}
    bounds = [f"{sign} `{field[key]}`" for key, sign in limits.items() if key in field]
    return " ".join([field.get("type", "anything"), *bounds])


def _default(field: dict[str, Any]) -> str:
    default = field.get("default")
    if isinstance(default, dict | list):
        return "as in its table"
    return f"`{json.dumps(default)}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


PAGES: dict[str, Callable[[], str]] = {
    "cli": command_page,
    "policy": policy_page,
    "http": http_page,
}
