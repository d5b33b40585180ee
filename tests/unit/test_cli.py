"""The command line: quick help, one set of flags for three sources, one-line errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxserve import __version__
from jaxserve.cli import SampleArgs, main
from jaxserve.cli_flags import Parser, add_flags, build, gather
from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import ConfigError
from server.args import ServerArgs

HEAVY = ("jax", "jaxlib", "flax", "transformers", "fastapi", "uvicorn", "numpy", "msgspec", "zmq", "yaml")
HELP_LIMIT_S = 0.5


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("JAXSERVE_"):
            monkeypatch.delenv(name)


def values(*argv: str) -> dict[str, object]:
    parser = Parser(prog="test", allow_abbrev=False)
    add_flags(parser, EngineArgs, ServerArgs)
    return gather(parser.parse(argv), EngineArgs, ServerArgs)


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["serve", "--help"],
        ["chat", "--help"],
        ["generate", "--help"],
        ["plan", "--help"],
        ["bench", "--help"],
        ["bench", "serve", "--help"],
        ["bench", "latency", "--help"],
    ],
)
def test_help_is_quick_and_loads_nothing_heavy(argv: list[str]) -> None:
    code = f"""
import sys
from jaxserve.cli import main
code = main({argv!r})
loaded = [name for name in {HEAVY!r} if name in sys.modules]
import resource
used = resource.getrusage(resource.RUSAGE_SELF)
print(code, loaded, used.ru_utime + used.ru_stime, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    exit_code, rest = done.stderr.strip().split(" ", 1)
    loaded, cpu_s = rest.rsplit(" ", 1)
    assert (exit_code, loaded) == ("0", "[]")
    assert "usage: jaxserve" in done.stdout
    # Processor time: other tests' load must not fail this one.
    assert float(cpu_s) < HELP_LIMIT_S


def test_the_installed_command_answers() -> None:
    program = Path(sys.executable).parent / "jaxserve"
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"jaxserve {__version__}\n"


def test_import_jaxserve_loads_nothing_heavy() -> None:
    code = f"import sys, jaxserve; jaxserve.SamplingParams; print([n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    code = "import sys, jaxserve; jaxserve.AsyncLLMEngine; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_field_is_a_flag_and_every_alias_too() -> None:
    engine = "--block-size 32 --max-model-len 4096 --dtype float32 --no-enable-prefix-caching"
    server = "--port 1 --api-key a --api-key b"
    found = values(*engine.split(), *server.split(), "--hf-overrides", '{"rope_theta": 1e6}')
    assert found == {
        "page_size": 32,
        "max_model_len": 4096,
        "dtype": "float32",
        "enable_prefix_caching": False,
        "port": 1,
        "api_key": ["a", "b"],
        "hf_overrides": {"rope_theta": 1e6},
    }
    assert build(EngineArgs, found).page_size == 32
    assert build(ServerArgs, found).port == 1
    assert values("--max-model-len", "auto")["max_model_len"] == "auto"
    assert values() == {}


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "max-num-seqs: 1\nmax_model_len: 100\nblock-size: 8\nport: 1\napi-key: [x, y]\nenable-prefix-caching: off\n"
    )
    monkeypatch.setenv("JAXSERVE_MAX_NUM_SEQS", "2")
    monkeypatch.setenv("JAXSERVE_PORT", "2")
    monkeypatch.setenv("JAXSERVE_ALLOWED_ORIGINS", "http://a, http://b")
    found = values("--config", str(file), "--port", "3")
    assert found == {
        "max_num_seqs": 2,
        "max_model_len": 100,
        "page_size": 8,
        "port": 3,
        "api_key": ["x", "y"],
        "enable_prefix_caching": False,
        "allowed_origins": ["http://a", "http://b"],
    }
    assert build(EngineArgs, found).dtype == "auto"
    monkeypatch.setenv("JAXSERVE_CONFIG", str(file))
    assert values()["port"] == 2


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--prot", "1"], "did you mean --port"),
        (["--port", "many"], "--port: 'many' is not a whole number"),
        (["--port"], "expected one argument"),
        (["--hf-overrides", "[1]"], "not a JSON object"),
        (["--gpu-memory-utilization", "lots"], "not a number"),
        (["--config", "/no/such/file.yaml"], "cannot be read"),
    ],
)
def test_bad_flags_are_named_in_one_line(argv: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        values(*argv)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("max-num-seq: 1", "did you mean max_num_seqs"),
        ("port: many", "port: 'many' is not a whole number"),
        ("port: true", "not a whole number"),
        ("port: 1.5", "not a whole number"),
        ("- port", "must hold keys and values"),
        ("port: [", "is not YAML"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=says) as caught:
        values("--config", str(file))
    assert "\n" not in str(caught.value)


def test_a_misspelt_environment_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXSERVE_MAX_NUM_SEQ", "1")
    with pytest.raises(ConfigError, match="did you mean JAXSERVE_MAX_NUM_SEQS"):
        values()
    monkeypatch.delenv("JAXSERVE_MAX_NUM_SEQ")
    monkeypatch.setenv("JAXSERVE_PORT", "many")
    with pytest.raises(ConfigError, match="JAXSERVE_PORT: 'many'"):
        values()


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["serv"], "the commands are serve, chat, generate"),
        (["serve", "--prot", "1"], "did you mean --port"),
        (["bench", "speed"], "there are latency, throughput, serve"),
        (["bench", "latency", "--num-iter", "1"], "did you mean --num-iters"),
        (["bench", "latency", "--num-iters", "0"], "num_iters is 0"),
        (["bench", "startup", "--num-iters-warmup", "0"], "num_iters_warmup"),
        (["serve", "a", "--model", "b"], "two models"),
        (["generate"], "PROMPT"),
        (["generate", "a", "b", "c"], "in quotes"),
        (["generate", "/no/such/checkpoint", "hello"], "no such directory"),
    ],
)
def test_errors_are_one_line_and_no_traceback(capsys: pytest.CaptureFixture[str], argv: list[str], says: str) -> None:
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("jaxserve: ")
    assert shown.err.count("\n") == 1
    assert says in shown.err


def test_sampling_flags_may_stand_between_model_and_prompt() -> None:
    parser = Parser(prog="test", allow_abbrev=False)
    parser.add_argument("words", nargs="+")
    add_flags(parser, SampleArgs)
    given = parser.parse(["model", "--temperature", "0", "prompt"])
    assert given["words"] == ["model", "prompt"]
    assert build(SampleArgs, gather(given, SampleArgs)).temperature == 0


def test_generate_and_chat_work_in_a_pipe(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--max-num-batched-tokens", "16", "--kv-cache-memory-bytes", str(1 << 20), "--temperature", "0"]
    assert main(["generate", str(tiny_checkpoint), "hello", "--max-tokens", "6", *small]) == 0
    shown = capsys.readouterr()
    assert shown.out.endswith("\n")
    assert len(shown.out) > 1
    assert "compiled" in shown.err
    done = subprocess.run(
        [sys.executable, "-m", "jaxserve.cli", "chat", str(tiny_checkpoint), "--max-tokens", "4", *small],
        input="hello\n\nagain\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert len(done.stdout) > 2
