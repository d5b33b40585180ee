"""The bundled demo model: a tiny Llama trained by `python -m jaxserve.demo.train` on text this repository makes."""

from importlib.resources import files
from pathlib import Path

DEMO_MODEL_NAME = "jaxserve-demo"


def demo_checkpoint() -> Path:
    """The directory of the demo checkpoint inside the installed package."""
    return Path(str(files("jaxserve.demo"))) / "checkpoint"
