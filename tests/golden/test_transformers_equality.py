"""Our model against what transformers generated: greedy tokens and logits, every family and rope type.

Teacher-forced: prompt and golden tokens go through the model in one pass, so each position is
checked on its own and one divergence cannot hide the next.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import CASES, GOLDENS, LONGEST_PROMPT, NUM_GENERATED, NUM_PROMPTS, overrides, prompts

from jaxserve.core.checkpoint import load_model_config
from jaxserve.layers.dense_attention import dense_causal_attend
from jaxserve.models.weights import load_params

PADDED = LONGEST_PROMPT + NUM_GENERATED  # one shape, one compilation a case
TOLERANCE = 1e-4
TIE = 1e-5  # logits closer than this may rank either way


def whole_sequence_logits(checkpoint: Path, sequences: list[list[int]], prompt_lens: list[int]) -> np.ndarray:
    """Logits [P, PADDED, V] of right-padded sequences, in one vmapped pass."""
    config = load_model_config(checkpoint)
    loaded = load_params(config, checkpoint)
    positions_T = jnp.arange(PADDED)

    @jax.jit
    def forward(leaves: list[jax.Array], token_ids_PT: jax.Array, rope_lens_PT: jax.Array) -> jax.Array:
        model = loaded.merge(leaves)

        def one(token_ids_T: jax.Array, rope_lens_T: jax.Array) -> jax.Array:
            return model.logits(model(token_ids_T, positions_T, rope_lens_T, dense_causal_attend(config)))

        return jax.vmap(one)(token_ids_PT, rope_lens_PT)

    token_ids_PT = np.zeros((len(sequences), PADDED), np.int32)
    for i, sequence in enumerate(sequences):
        token_ids_PT[i, : len(sequence)] = sequence
    rope_lens_PT = np.maximum(np.array(prompt_lens)[:, None], np.arange(PADDED) + 1).astype(np.int32)
    return np.asarray(forward(loaded.leaves, jnp.asarray(token_ids_PT), jnp.asarray(rope_lens_PT)))


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_and_logits_equal_transformers(case: str, make_tiny_checkpoint: Callable[..., Path]) -> None:
    golden = np.load(GOLDENS / f"{case}.npz", allow_pickle=False)
    checkpoint = make_tiny_checkpoint(**overrides(case))
    digest = hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert digest == str(golden["weights_sha256"]), "the weights differ from those the goldens were made with"

    prompt_lens = [len(prompt) for prompt in prompts(case)]
    tokens_PG = golden["tokens_PG"].astype(np.int64)
    assert tokens_PG.shape == (NUM_PROMPTS, NUM_GENERATED)
    sequences = [prompt + tokens.tolist() for prompt, tokens in zip(prompts(case), tokens_PG, strict=True)]
    logits_PTV = whole_sequence_logits(checkpoint, sequences, prompt_lens)

    for i, prompt_len in enumerate(prompt_lens):
        ours_GV = logits_PTV[i, prompt_len - 1 : prompt_len - 1 + NUM_GENERATED]
        top_logits_G4 = golden["top_logits_PG4"][i]
        best_G4 = np.take_along_axis(ours_GV, golden["top_ids_PG4"][i].astype(np.int64), -1)
        np.testing.assert_allclose(best_G4, top_logits_G4, rtol=0, atol=TOLERANCE, err_msg=f"prompt {i}")
        clear_G = top_logits_G4[:, 0] - top_logits_G4[:, 1] >= TIE
        assert clear_G.mean() > 0.9
        np.testing.assert_array_equal(ours_GV.argmax(-1)[clear_G], tokens_PG[i][clear_G], err_msg=f"prompt {i}")
    for row_V, (i, position) in zip(golden["rows_RV"], golden["row_index_R2"], strict=True):
        np.testing.assert_allclose(logits_PTV[i, position], row_V, rtol=0, atol=TOLERANCE, err_msg=f"{i}, {position}")


def test_the_cases_cover_every_family_and_rope_type() -> None:
    architectures = {case.get("architectures", ["LlamaForCausalLM"])[0] for case in CASES.values()}
    assert len(architectures) == 6
    ropes = [case.get("rope_scaling") or case.get("rope_parameters") or {} for case in CASES.values()]
    types = {rope.get("rope_type", rope.get("type", "default")) for rope in ropes}
    assert types == {"default", "linear", "dynamic", "llama3", "yarn", "longrope"}
