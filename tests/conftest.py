"""Fixtures every test may use. Importing this first also turns the shape annotations into checks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import install_import_hook
from random_checkpoint import write_checkpoint

# Free in production: only here are shapes and dtypes checked, whenever a function is traced or called.
install_import_hook(["jaxserve.layers", "jaxserve.models", "pallas_kernels"], "beartype.beartype")


@pytest.fixture(scope="session")
def make_tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Call with config.json overrides (and seed=, num_shards=) to get a fresh tiny checkpoint directory."""

    def make(**overrides: Any) -> Path:
        return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), **overrides)

    return make


@pytest.fixture(scope="session")
def tiny_checkpoint(make_tiny_checkpoint: Callable[..., Path]) -> Path:
    """A Llama of 2 layers, hidden 64, 4 query and 2 KV heads of 16, vocabulary 512, 256 positions, float32.

    Its byte-level tokenizer prepends <|begin|> (id 0); <|end|> (id 1) is EOS; any text round-trips.
    Shared by the whole session: do not write into it.
    """
    return make_tiny_checkpoint()
