"""A process of its own with eight CPU devices: the same requests through engines cut over several of them.

python run_cut.py JOBS.json OUT.json, JOBS a list of {"name", "engine": arguments of LLM}.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

from jaxserve import LLM, SamplingParams

SHARED = list(range(40, 75))
"""A prefix of several requests: longer than a page and than a step's tokens."""

WISHES: list[tuple[list[int], dict[str, Any]]] = [
    ([7], {}),
    (SHARED, {}),
    ([*SHARED, 9, 8], {"temperature": 0.9, "seed": 1}),
    ([*SHARED, 9, 9], {"temperature": 1.2, "seed": 2, "top_k": 7}),
    (list(range(5, 19)), {"temperature": 0.8, "seed": 3, "top_p": 0.7, "min_p": 0.02}),
    (list(range(200, 215)), {"repetition_penalty": 1.4, "presence_penalty": 0.5, "frequency_penalty": 0.3}),
    (list(range(100, 170)), {"temperature": 1.0, "seed": 5, "logit_bias": {"11": 4.0, "250": 5.0}}),
    (list(range(30, 50)), {"prompt_logprobs": 3}),
    ([3, 1, 4, 1, 5], {"temperature": 0.7, "seed": 8, "min_tokens": 10}),
]


def answers(llm: LLM) -> dict[str, Any]:
    """Tokens, their log probabilities with the top ones, and those of prompts."""
    params = [SamplingParams(max_tokens=12, ignore_eos=True, logprobs=4, **wish) for _, wish in WISHES]
    outputs = llm.generate([{"prompt_token_ids": ids} for ids, _ in WISHES], params, use_tqdm=False)

    def numbers(positions: Any) -> list[list[tuple[int, int, float]]]:
        return [[(i, one.rank, one.logprob) for i, one in (position or {}).items()] for position in positions or ()]

    return {
        "tokens": [list(one.outputs[0].token_ids) for one in outputs],
        "logprobs": [numbers(one.outputs[0].logprobs) for one in outputs],
        "prompt_logprobs": [numbers(one.prompt_logprobs) for one in outputs],
    }


def main(jobs: Path, out: Path) -> None:
    found: dict[str, Any] = {}
    for job in json.loads(jobs.read_text()):
        llm = LLM(**job["engine"])
        first, again = answers(llm), answers(llm)  # again: the prefixes are cached now
        found[job["name"]] = {"first": first, "again": again}
        llm.shutdown()
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
