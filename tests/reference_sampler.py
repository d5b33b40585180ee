"""A sampler to compare with: numpy, float64, sorting, one row at a time. Slow and plain on purpose."""

import numpy as np

from jaxserve.core.params import SamplingParams


def processed_logits(
    logits_V: np.ndarray, params: SamplingParams, prompt: list[int], output: list[int], eos_ids: list[int]
) -> np.ndarray:
    """Logits after masks, bias and penalties, in vLLM's order."""
    row_V = logits_V.astype(np.float64).copy()
    if params.allowed_token_ids is not None:
        for token in range(len(row_V)):
            if token not in params.allowed_token_ids:
                row_V[token] = -np.inf
    for word in params.bad_words_token_ids or []:
        prefix = word[:-1]
        if not prefix or output[-len(prefix) :] == prefix:
            row_V[word[-1]] = -np.inf
    if len(output) < params.min_tokens:
        for token in [*(params.stop_token_ids or []), *([] if params.ignore_eos else eos_ids)]:
            row_V[token] = -np.inf
    for token, bias in (params.logit_bias or {}).items():
        row_V[token] += bias
    for token in range(len(row_V)):
        if token in prompt or token in output:
            scale = params.repetition_penalty
            row_V[token] = row_V[token] / scale if row_V[token] > 0 else row_V[token] * scale
        row_V[token] -= params.frequency_penalty * output.count(token)
        row_V[token] -= params.presence_penalty * (token in output)
    return row_V


def kept_ids(scaled_V: np.ndarray, top_k: int, top_p: float, min_p: float) -> set[int]:
    """Tokens that min-p, top-k and top-p keep; ties at a threshold stay together. scaled_V: maximum 0."""
    weights_V = np.exp(scaled_V.astype(np.float64))
    kept = [token for token in np.argsort(-scaled_V, kind="stable") if weights_V[token] >= min_p]
    if 0 < top_k < len(kept):
        kept = [token for token in kept if scaled_V[token] >= scaled_V[kept[top_k - 1]]]
    if top_p < 1:
        goal, mass, last = top_p * sum(weights_V[token] for token in kept), 0.0, kept[0]
        for token in kept:
            if mass >= goal:
                break
            mass, last = mass + weights_V[token], token
        kept = [token for token in kept if scaled_V[token] >= scaled_V[last]]
    return {int(token) for token in kept}


def probabilities(scaled_V: np.ndarray, kept: set[int]) -> np.ndarray:
    """The distribution over the kept tokens."""
    weights_V = np.array([np.exp(np.float64(x)) if token in kept else 0.0 for token, x in enumerate(scaled_V)])
    return weights_V / weights_V.sum()


def log_softmax(logits_V: np.ndarray) -> np.ndarray:
    row_V = logits_V.astype(np.float64)
    return row_V - row_V.max() - np.log(np.exp(row_V - row_V.max()).sum())


def pairwise_rows(options: dict[str, list], num_rows: int, seed: int) -> list[dict]:
    """At least num_rows combinations in which every pair of values of two options occurs."""
    rng = np.random.default_rng(seed)
    names = list(options)
    missing = {
        (a, i, b, j)
        for x, a in enumerate(names)
        for b in names[x + 1 :]
        for i in range(len(options[a]))
        for j in range(len(options[b]))
    }
    rows: list[dict[str, int]] = []
    while missing or len(rows) < num_rows:
        candidates = [{name: int(rng.integers(len(options[name]))) for name in names} for _ in range(8)]
        if missing:
            first, i, second, j = min(missing)
            for candidate in candidates:
                candidate.update({first: i, second: j})
        best = max(candidates, key=lambda row: len(_pairs(row, names) & missing))
        missing -= _pairs(best, names)
        rows.append(best)
    return [{name: options[name][index] for name, index in row.items()} for row in rows]


def _pairs(row: dict[str, int], names: list[str]) -> set[tuple[str, int, str, int]]:
    return {(a, row[a], b, row[b]) for x, a in enumerate(names) for b in names[x + 1 :]}
