"""The commands in docs/benchmarks/README.md: each is one that the command line takes, with lengths that it claims."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from jaxserve.bench import kernels, latency, multihost, report, serve, startup, throughput
from jaxserve.bench.datasets import make_dataset
from jaxserve.bench.flags import DatasetArgs
from jaxserve.cli import main
from jaxserve.demo import demo_checkpoint

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "benchmarks" / "README.md").read_text()
COMMANDS = re.findall(r"`(jaxserve bench [^`]+)`", PAGE)
WORDS = {"MODEL": "some/model", "FILE": "out.json", "RATE": "12.5", "N": "750", "NAME": "H200"}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the benchmarks are called with, instead of running."""
    calls: list[Any] = []
    for module in (latency, throughput, serve, startup, multihost):
        monkeypatch.setattr(module, "run", lambda *args: calls.append(args) or 0)
    monkeypatch.setattr(kernels, "main", lambda argv, prog: calls.append((kernels.parser(prog).parse_args(argv),)))
    return calls


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_takes_it(command: str, asked: list[Any]) -> None:
    words = [WORDS.get(word, word) for word in shlex.split(command)]
    assert main(words[1:]) == 0
    assert len(asked) == 1


def test_every_workload_has_one() -> None:
    assert len(COMMANDS) >= 13
    assert {command.split()[2] for command in COMMANDS} == {
        "latency",
        "throughput",
        "serve",
        "startup",
        "multihost",
        "kernels",
    }


def lengths(asked: list[Any], workload: str) -> set[tuple[int, int, int]]:
    """Shared, own and output tokens of the requests of a line of the tables."""
    (command,) = re.findall(rf"\| {workload}[^|]*\| `(jaxserve bench [^`]+)`", PAGE)
    assert main([WORDS.get(word, word) for word in shlex.split(command)][1:]) == 0
    (args,) = [one for one in asked.pop() if isinstance(one, DatasetArgs)]
    items = make_dataset(args, 4096, 0, lambda: list)
    assert len(items) == args.num_prompts
    shared = args.prefix_repetition_prefix_len if args.dataset_name == "prefix_repetition" else 0
    return {(shared, len(item.prompt_token_ids) - shared, item.num_output_tokens) for item in items}


def test_lengths_are_those_of_the_table(asked: list[Any]) -> None:
    assert lengths(asked, "R: ") == {(0, 1024, 128)}
    assert lengths(asked, "R2: ") == {(0, 467, 256)}
    assert lengths(asked, "P: ") == {(2048, 128, 128)}
    assert lengths(asked, "L: ") == {(0, 32768, 256)}
    assert (0, 8192, 64) in lengths(asked, "M: ")


def test_records_name_no_folders_and_no_keys(tmp_path: Path) -> None:
    model = tmp_path / "llama-8b"
    model.mkdir()
    argv = ["--model", str(model), f"--output-json={tmp_path}/new.json", "--api-key", "secret", "--header=a=b"]
    argv += ["--endpoint", "/v1/completions", "--base-url", "http://127.0.0.1:8000/v1", "--extra-body", '{"a": "/b"}']
    assert report.command("serve", argv) == (
        "jaxserve bench serve --model llama-8b --output-json=new.json --api-key '***' '--header=***' "
        '--endpoint /v1/completions --base-url http://127.0.0.1:8000/v1 --extra-body \'{"a": "/b"}\''
    )
    assert report.model_name(str(model)) == "llama-8b"
    assert report.model_name("meta-llama/Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"
    assert report.model_name(str(demo_checkpoint())) == "jaxserve-demo"
