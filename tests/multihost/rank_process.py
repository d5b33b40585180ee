"""One rank of a group, in JSON's words: `rank_process.py '{"rank": 0, "num_ranks": 2, "port": …, "args": {…}}'`.

Rank 0 prints one line a finished request, and `forever` keeps it generating; the others follow.
"""

import json
import os
import sys
import time
from typing import Any

from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import JaxserveError
from jaxserve.core.params import SamplingParams
from jaxserve.engine.core import EngineCore
from jaxserve.engine.follower import follow
from jaxserve.engine.messages import AddRequest
from jaxserve.engine.ranks import Ranks

PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0, "max_tokens": 30},
    {"temperature": 0.8, "seed": 5, "top_p": 0.9, "max_tokens": 25, "ignore_eos": True},
    {"temperature": 0.0, "max_tokens": 20, "repetition_penalty": 1.3, "logit_bias": {7: 2.0}},
    {"temperature": 0.0, "max_tokens": 12, "min_tokens": 6, "stop_token_ids": [9]},  # a bias that comes and goes
]


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def requests() -> list[AddRequest]:
    prompts = [[1 + (7 * i + j * j) % 200 for j in range(5 + 9 * i)] for i in range(2 * len(PARAMS))]
    return [
        AddRequest(f"r{i}", prompt, SamplingParams(**PARAMS[i % len(PARAMS)]), 0.0) for i, prompt in enumerate(prompts)
    ]


def generate(core: EngineCore) -> dict[str, list[int]]:
    tokens: dict[str, list[int]] = {}
    for request in requests():
        core.add(request)
    while core.has_work:
        for news in core.step():
            tokens.setdefault(news.request_id, []).extend(news.new_token_ids)
    return tokens


def lead(args: EngineArgs, ranks: Ranks, *, forever: bool) -> None:
    core = EngineCore(args, say, ranks)
    say("serving")
    print(json.dumps(generate(core)), flush=True)
    time.sleep(1.2)  # idle, while the followers' digests come
    while forever:
        generate(core)
    core.close()


def main(said: dict[str, Any]) -> int:
    args = EngineArgs(**said["args"])
    ranks = Ranks(said["num_ranks"], said["rank"], "127.0.0.1", said["port"])
    if not ranks.is_leader:
        return follow(args, ranks, say)
    try:
        lead(args, ranks, forever=said["forever"])
    except JaxserveError as error:
        say(str(error))
        os._exit(1)  # as an engine's process does: JAX's way out waits for the others
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
