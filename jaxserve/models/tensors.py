"""Opening a checkpoint's weight files."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from jaxserve.core.errors import CheckpointError

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
"""Of the tensors that are read, as safetensors spells them."""


def open_tensors(stack: ExitStack, file: Path) -> Any:
    """A safetensors file as numpy tensors, closed with the stack; CheckpointError if it is broken or cut off."""
    try:
        return stack.enter_context(safe_open(file, framework="numpy"))
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size
        raise CheckpointError(f"{file} ({size} bytes) is not a whole safetensors file: {error}") from error
