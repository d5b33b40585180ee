"""The bundled demonstration model: a tiny Llama that needs no download. See checkpoint/README.md."""

from importlib.resources import files
from pathlib import Path

DEMO_MODEL_NAME = "jaxserve-demo"


def demo_checkpoint() -> Path:
    """The directory of the bundled checkpoint (config, weights, tokenizer).

    Raises FileNotFoundError where the package was installed without it.
    """
    directory = Path(str(files(__name__) / "checkpoint"))
    if not (directory / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"The demonstration model is missing from {directory}; "
            f"`python -m jaxserve.demo.train --out {directory}` makes it again."
        )
    return directory
