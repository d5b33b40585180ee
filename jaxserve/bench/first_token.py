"""The process that `startup` times: starts an engine, makes one token, prints the seconds as one JSON line.

python -m jaxserve.bench.first_token '{"engine": {...}, "started_s": MONOTONIC}'
"""

import contextlib
import importlib
import json
import sys
import time
from typing import Any

from jaxserve.core.errors import JaxserveError


def measure(engine: dict[str, Any], started_s: float) -> dict[str, Any]:
    """Seconds by phase. started_s: on the monotonic clock, which all processes of a machine share."""
    # Imports are a phase of their own, so they happen in here; the engine's would else be part of "startup".
    importlib.import_module("jaxserve.engine.core")
    from jaxserve.core.params import SamplingParams
    from jaxserve.llm import LLM

    imported_s = time.monotonic()
    with LLM(progress=lambda _: None, **engine) as llm:
        ready_s = time.monotonic()
        prompt = {"prompt_token_ids": [llm.info.vocab_size // 2] * 4}
        llm.generate(prompt, SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True), use_tqdm=False)
        first_s = time.monotonic()
        info = llm.info
    seconds = {
        "import": imported_s - started_s,
        "config": info.startup_s["config"],
        "weights": info.startup_s["weights"],
        "compilation": info.startup_s["compile"],
        "capture": info.startup_s["capture"],
        "startup": ready_s - imported_s,
        "first_token": first_s - ready_s,
        "total": first_s - started_s,
    }
    about = (
        "device",
        "model_path",
        "dtype",
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "num_compilations",
    )
    return {name: round(value, 4) for name, value in seconds.items()} | {name: getattr(info, name) for name in about}


def main() -> int:
    asked = json.loads(sys.argv[1])
    try:
        with contextlib.redirect_stdout(sys.stderr):  # whatever libraries print, stdout carries the one line
            line = json.dumps(measure(asked["engine"], asked["started_s"]))
    except JaxserveError as error:
        print(error, file=sys.stderr)
        return 1
    print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
