"""The published program that examples/article_server.py ships, run as it is on smaller shapes."""

import asyncio
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from engines import SMALL

from jaxserve.core.config import AsyncEngineArgs

PROGRAM = Path(__file__).parents[2] / "examples" / "article_server.py"


@pytest.fixture
def article(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program as a module. Its shapes are those of a large GPU, so the same arguments get smaller numbers."""
    spec = importlib.util.spec_from_file_location("article_server", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def smaller(**given: Any) -> AsyncEngineArgs:
        assert AsyncEngineArgs(**given).page_size == 16
        return AsyncEngineArgs(**{**given, **SMALL})

    monkeypatch.setattr(module, "AsyncEngineArgs", smaller)
    return module


def test_the_program_streams_a_completion(
    article: ModuleType, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = psutil.Process().children()  # other tests may keep a server
    text = asyncio.run(article.main(str(tiny_checkpoint), "Once upon a time", max_tokens=12))
    assert text
    assert text in capsys.readouterr().out
    assert psutil.Process().children() == before


def test_the_import_lines_are_all_that_was_changed() -> None:
    lines = PROGRAM.read_text(encoding="utf-8").splitlines()
    imported = [line for line in lines if line.startswith("from jaxserve")]
    assert [line.split(" import ")[0].replace("jaxserve", "vllm") for line in imported] == [
        "from vllm",
        "from vllm.engine.arg_utils",
        "from vllm.engine.async_llm_engine",
    ]
