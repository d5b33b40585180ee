"""Make the goldens: what transformers generates for every case of golden_cases.py.

Run once, and again only when cases change, in an environment of its own (Python 3.11 or newer):

    python -m venv /tmp/hf && /tmp/hf/bin/pip install torch transformers ml_dtypes
    /tmp/hf/bin/python tests/golden/make_goldens.py [CASE...]

Each prompt gets a fresh model, because transformers' dynamic rope remembers earlier sequences.
Stored per case (goldens/CASE.npz), P prompts and 64 greedy tokens each, float32:
    tokens_PG         the generated ids
    top_ids_PG4, top_logits_PG4   the four best of every generated position
    rows_RV, row_index_R2         full logits at (prompt, position) pairs; position counts prompt tokens
    weights_sha256    of the checkpoint file, so that a different generator is noticed
"""

import copy
import hashlib
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]  (an environment of its own)
from golden_cases import CASES, GOLDENS, NUM_GENERATED, overrides, prompts
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1]))
from random_checkpoint import write_checkpoint


def answer(model: Any, prompt: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(generated tokens [64], logits [tokens, V] of every position of prompt and output but the last)."""
    ids = torch.tensor([prompt])
    prompt_logits = copy.deepcopy(model)(ids).logits[0, :-1]
    output = copy.deepcopy(model).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_GENERATED,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = torch.cat([prompt_logits, *output.logits])
    return output.sequences[0, len(prompt) :].numpy(), logits.numpy()


def make(case: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = write_checkpoint(Path(directory), **overrides(case))
        digest = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    model.generation_config.eos_token_id = None  # 64 tokens whatever comes
    tokens, top_ids, top_logits, rows, row_index = [], [], [], [], []
    for i, prompt in enumerate(prompts(case)):
        generated, logits = answer(model, prompt)
        assert len(generated) == NUM_GENERATED
        ours = logits[len(prompt) - 1 :]
        assert (ours.argmax(-1) == generated).all()
        best = np.argsort(-ours, axis=-1, kind="stable")[:, :4]
        tokens.append(generated)
        top_ids.append(best)
        top_logits.append(np.take_along_axis(ours, best, -1))
        if i < 4:
            for position in (0, len(prompt) // 2, len(prompt) - 1, len(prompt) + NUM_GENERATED - 2):
                rows.append(logits[position])
                row_index.append((i, position))
    GOLDENS.mkdir(exist_ok=True)
    np.savez_compressed(
        GOLDENS / f"{case}.npz",
        tokens_PG=np.array(tokens, np.uint16),
        top_ids_PG4=np.array(top_ids, np.uint16),
        top_logits_PG4=np.array(top_logits, np.float32),
        rows_RV=np.array(rows, np.float32),
        row_index_R2=np.array(row_index, np.int32),
        weights_sha256=np.array(digest),
    )
    distinct = [len(set(row.tolist())) for row in tokens]
    print(case, "distinct tokens of 64, least and mean:", min(distinct), sum(distinct) / len(distinct), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        for name in sys.argv[1:] or CASES:
            make(name)
