"""The garbage collector and a heap full of programs.

Tracing and compiling leave hundreds of thousands of Python objects that live as long as the engine. Each full
collection visits all of them: half a second and more in the midst of serving, while the device has nothing to do.
"""

import gc


def settle_heap() -> None:
    """Collect what is garbage and take everything else out of the collector's sight: it is here to stay."""
    gc.collect()
    gc.freeze()


def release_heap() -> None:
    """The collector sees everything again: what was here to stay may now be garbage."""
    gc.unfreeze()
