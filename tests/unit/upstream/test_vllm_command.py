import json
import sys
from pathlib import Path

import pytest

from entrogate.errors import ConfigError
from entrogate.settings import ManagedSettings
from entrogate.upstream import vllm_command
from entrogate.upstream.parsers import Parser, Parsers

PARSERS = Parsers(
    reasoning=Parser(name="qwen3", why="set"), tool_calls=Parser(name="hermes", why="set")
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"vocab_size": 4096}))
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    return folder


def test_command_line_on_cpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_command, "_multiplies_bfloat16", lambda: True)
    settings = ManagedSettings(
        model=str(model), served_model_name="almanac", extra_args=("--max-model-len", "2048")
    )
    assert vllm_command.command_line(settings, parsers=PARSERS, port=8123, cpu=True) == [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(model), "--host", "127.0.0.1", "--port", "8123",
        "--served-model-name", "almanac",
        "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
        "--reasoning-parser", "qwen3", "--enforce-eager", "--max-num-seqs", "32",
        "--no-enable-chunked-prefill",
        "--max-model-len", "2048",
    ]  # fmt: skip


def test_a_model_runs_in_float32_where_bfloat16_is_emulated(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dtype(folder: str, flags: str) -> list[str]:
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text(f"processor : 0\nflags : fpu avx2 {flags}\n")
        has = vllm_command._multiplies_bfloat16(cpuinfo)
        monkeypatch.setattr(vllm_command, "_multiplies_bfloat16", lambda: has)
        settings = ManagedSettings(model=folder)
        try:
            command = vllm_command.command_line(settings, parsers=PARSERS, port=1, cpu=True)
        finally:
            monkeypatch.undo()
        return command[command.index("--dtype") :] if "--dtype" in command else []

    assert dtype(str(model), "avx512f") == ["--dtype", "float32"]
    assert dtype(str(model), "avx512_bf16") == []
    assert dtype("org/name", "avx512f") == ["--dtype", "float32"]
    assert dtype("org/name", "amx_bf16") == []
    assert dtype("org/name", "\nmodel name : bf16 x") == ["--dtype", "float32"]
    assert dtype("org/name", "\nFeatures : fp asimd bf16") == []


def test_command_line_on_gpu_leaves_the_engine_its_defaults() -> None:
    settings = ManagedSettings(model="org/name")
    command = vllm_command.command_line(settings, parsers=PARSERS, port=1, cpu=False)
    assert "--enforce-eager" not in command
    assert command[command.index("--model") + 1] == "org/name"


def test_lora_is_switched_on_together_with_loading_at_run_time() -> None:
    settings = ManagedSettings(model="org/name", lora=True, max_lora_rank=32)
    command = vllm_command.command_line(settings, parsers=PARSERS, port=1, cpu=False)
    at = command.index("--enable-lora")
    assert command[at:] == ["--enable-lora", "--max-loras", "2", "--max-lora-rank", "32"]
    made = vllm_command.environment({}, model="org/name", cpu=False, lora=True)
    assert made["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert "--enable-lora" not in vllm_command.command_line(
        ManagedSettings(model="org/name"), parsers=PARSERS, port=1, cpu=False
    )
    plain = vllm_command.environment({}, model="org/name", cpu=False)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in plain


def test_a_server_of_ours_sends_its_traces_where_ours_go() -> None:
    settings = ManagedSettings(model="a/b")
    command = vllm_command.command_line(
        settings, parsers=PARSERS, port=1, cpu=False, traces_url="http://c/v1/traces"
    )
    assert command[-2:] == ["--otlp-traces-endpoint", "http://c/v1/traces"]
    assert "--otlp-traces-endpoint" not in vllm_command.command_line(
        settings, parsers=PARSERS, port=1, cpu=False
    )
    variables = vllm_command.environment({}, model="a/b", cpu=False)
    assert variables["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
    assert variables["OTEL_SERVICE_NAME"] == "vllm"


def test_environment_never_overrides_the_users(model: Path) -> None:
    base = {"VLLM_CPU_KVCACHE_SPACE": "7", "PATH": "/bin"}
    made = vllm_command.environment(base, model=str(model), cpu=True)
    assert made["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert made["HF_HUB_OFFLINE"] == "1"
    assert made["PATH"] == "/bin"


def test_environment_bounds_the_kv_cache_on_cpu_only(model: Path) -> None:
    assert vllm_command.environment({}, model=str(model), cpu=True)["VLLM_CPU_KVCACHE_SPACE"] == "1"
    big = vllm_command.environment({}, model="org/name", cpu=True)
    assert big["VLLM_CPU_KVCACHE_SPACE"] == "4"
    assert "HF_HUB_OFFLINE" not in big
    assert "VLLM_CPU_KVCACHE_SPACE" not in vllm_command.environment({}, model=str(model), cpu=False)


def test_check_model_accepts_a_folder_and_a_hub_name(model: Path) -> None:
    vllm_command.check_model(str(model))
    vllm_command.check_model("Qwen/Qwen3-8B")


@pytest.mark.parametrize(
    ("missing", "message"), [("config.json", "no config.json"), ("model.safetensors", "no weights")]
)
def test_check_model_refuses_an_incomplete_folder(model: Path, missing: str, message: str) -> None:
    (model / missing).unlink()
    with pytest.raises(ConfigError, match=message):
        vllm_command.check_model(str(model))


def test_check_model_refuses_a_missing_path_and_a_file(model: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        vllm_command.check_model("/no/such/folder")
    with pytest.raises(ConfigError, match="is a file"):
        vllm_command.check_model(str(model / "config.json"))


def test_no_parser_is_no_flag() -> None:
    none = Parser(name=None, why="set")
    command = vllm_command.command_line(
        ManagedSettings(model="org/name"),
        parsers=Parsers(reasoning=none, tool_calls=none),
        port=1,
        cpu=False,
    )
    for flag in ("--reasoning-parser", "--tool-call-parser", "--enable-auto-tool-choice", "none"):
        assert flag not in command
