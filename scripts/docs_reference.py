"""Reference pages of the documentation site, made from the code while mkdocs builds.

A hook of `mkdocs.yml`: nothing it makes is kept in the repository, so nothing can be out of date.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from entrogate.cli import command_line
from entrogate.gate.schema import Policy


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
}
