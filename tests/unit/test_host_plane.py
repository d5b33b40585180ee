"""What must stay light stays light: real interpreters that import the host plane and look at what they loaded."""

import json
import subprocess
import sys

import pytest

HEAVY = ("jax", "jaxlib", "flax", "torch", "orbax")
FRONT_END = ("jaxserve", "jaxserve.engine.async_engine", "jaxserve.engine.messages", "jaxserve.llm")
REPORT = """
import importlib, json, pkgutil, sys
for name in {names!r}:
    package = importlib.import_module(name)
    for child in pkgutil.walk_packages(getattr(package, "__path__", []) if {deep} else [], name + "."):
        importlib.import_module(child.name)
print(json.dumps(sorted(name for name in sys.modules if "." not in name)))
"""


def loaded_after_importing(names: tuple[str, ...], deep: bool) -> set[str]:
    code = REPORT.format(names=names, deep=deep)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("names", "deep"),
    [
        (("jaxserve.core", "jaxserve.cache", "jaxserve.schedule", "jaxserve.text"), True),
        (("server",), True),
        (FRONT_END, False),
    ],
    ids=["host_rooms", "server", "front_end"],
)
def test_loads_no_device_library(names: tuple[str, ...], deep: bool) -> None:
    assert not loaded_after_importing(names, deep).intersection(HEAVY)


def test_the_package_itself_loads_next_to_nothing() -> None:
    assert not loaded_after_importing(("jaxserve",), deep=False).intersection({*HEAVY, "transformers", "numpy"})
