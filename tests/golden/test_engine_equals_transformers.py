"""The whole engine against transformers' greedy tokens: paged, batched, prompts in chunks, prefixes cached."""

import numpy as np
import pytest
from engine_driver import Driver, Wish, make_engine
from golden_cases import GOLDENS, NUM_GENERATED, overrides, prompts

from jaxserve.core.params import SamplingParams

# Every family, rope type and head ratio once (test_transformers_equality.py runs all cases without the engine).
CASES = [
    "llama1",
    "llama2_gqa2",
    "llama3_gqa4",
    "smollm2",
    "mistral_window_gqa8",
    "qwen2_tied_gqa7",
    "qwen2_layered_window",
    "qwen25_yarn",
    "qwen3_tied",
    "llama_linear",
    "llama_dynamic",
    "longrope_crossing",
    "mixtral_window_top3",
    "qwen3_moe_some_dense",
]
TIE = 1e-5  # logits closer than this may rank either way; what follows is then another sequence


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_equal_transformers(case, make_tiny_checkpoint):
    golden = np.load(GOLDENS / f"{case}.npz", allow_pickle=False)
    model = make_tiny_checkpoint(**overrides(case))
    # The fewest buckets that still batch and chunk: four rows, sixteen tokens a step.
    room = 96 if case == "llama_dynamic" else 128  # its context is twice 48
    limits = dict(max_num_seqs=4, max_num_batched_tokens=16, max_model_len=room, kv_cache_memory_bytes=1 << 20)
    core = make_engine(model, **limits)
    params = [
        SamplingParams(temperature=0, max_tokens=min(NUM_GENERATED, room - len(p)), ignore_eos=True)
        for p in prompts(case)
    ]
    answers = Driver(core).run([Wish(p, one) for p, one in zip(prompts(case), params, strict=True)])
    num_exact = 0
    for i, answer in enumerate(answers):
        want = golden["tokens_PG"][i][: len(answer.token_ids)].tolist()
        assert len(answer.token_ids) == params[i].max_tokens
        if answer.token_ids != want:
            first = next(j for j, (a, b) in enumerate(zip(answer.token_ids, want, strict=True)) if a != b)
            margin = golden["top_logits_PG4"][i][first]
            assert margin[0] - margin[1] < TIE, (
                f"prompt {i} token {first}: {answer.token_ids[first]}, golden {want[first]}"
            )
        num_exact += answer.token_ids == want
    assert num_exact >= len(answers) - 1
