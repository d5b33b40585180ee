"""What the demonstration model knows: `python -m jaxserve.demo.measure >> CHECKPOINT/README.md`.

Asks every topic of the closed world through the engine, greedily, and prints a Markdown table of
how many answers were right. The questions come from the same templates as the training text.
"""

import argparse
import random
from collections.abc import Callable

from jaxserve.core.params import SamplingParams
from jaxserve.demo import chats
from jaxserve.demo.knowledge import TOPICS
from jaxserve.llm import LLM

SEED = 99
NUM_QUESTIONS = 40


def questions() -> dict[str, Callable[[random.Random], chats.Turns]]:
    """Topic name -> maker of a conversation whose last turn is the expected answer."""
    topics: dict[str, Callable[[random.Random], chats.Turns]] = {}
    for topic, _ in TOPICS:
        if topic.__name__ not in ("country_list", "kind_of"):  # there any list is right
            topics[topic.__name__.replace("_", " ")] = lambda rng, topic=topic: [
                ("user", (pair := topic(rng))[0]),
                ("assistant", pair[1]),
            ]
    topics["user's name"] = chats.named
    topics["not knowing"] = chats.unknown
    return topics


def is_right(topic: str, expected: str, answer: str) -> bool:
    """Word for word; where nothing is known, any refusal; greetings may differ after the name."""
    if topic == "not knowing":
        return "not know" in answer
    if topic == "user's name":
        return expected.split("!")[0].split()[-1].rstrip(".") in answer
    return answer == expected


def measure(llm: LLM) -> dict[str, int]:
    """Right answers of each topic out of NUM_QUESTIONS."""
    rng = random.Random(SEED)
    greedy = SamplingParams(temperature=0.0, max_tokens=100)
    right: dict[str, int] = {}
    for topic, make in questions().items():
        chosen = [make(rng) for _ in range(NUM_QUESTIONS)]
        prompts = [[{"role": role, "content": content} for role, content in turns[:-1]] for turns in chosen]
        answers = [output.outputs[0].text for output in llm.chat(prompts, greedy, use_tqdm=False)]
        right[topic] = sum(is_right(topic, turns[-1][1], answer) for turns, answer in zip(chosen, answers, strict=True))
    return right


def main() -> None:
    """Command line: print the table."""
    parser = argparse.ArgumentParser(description="Ask the demonstration model what it knows.")
    parser.add_argument("--model", default="", help="checkpoint directory; the bundled one if not given")
    given = parser.parse_args()
    with LLM(given.model, max_model_len=256, max_num_seqs=16, max_num_batched_tokens=64, disable_log_stats=True) as llm:
        right = measure(llm)
    print("\n## What it knows\n")
    print(f"Right answers to {NUM_QUESTIONS} questions of each topic, greedy (`python -m jaxserve.demo.measure`).\n")
    print("| topic | right |\n|---|---|")
    for topic, count in right.items():
        print(f"| {topic} | {count} / {NUM_QUESTIONS} |")


if __name__ == "__main__":
    main()
