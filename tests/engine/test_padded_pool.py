"""A pool whose heads are wider than the model's, as a GPU's kernels may want it: nobody can tell from the tokens."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from engine_driver import Driver, TieJudge, Wish, make_engine

from jaxserve.core.params import SamplingParams
from jaxserve.runner import sizes

ROOM: dict[str, Any] = dict(max_model_len=64, kv_cache_memory_bytes=1 << 19)


def twice_the_head_dim(q: jax.ShapeDtypeStruct, pool: jax.ShapeDtypeStruct, compute_capability: str | None) -> int:
    return 2 * q.shape[2]


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
def test_padding_changes_no_token(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, kv_cache_dtype: str) -> None:
    plain = Driver(make_engine(tiny_checkpoint, **ROOM, kv_cache_dtype=kv_cache_dtype))
    monkeypatch.setattr(sizes, "pool_head_dim", twice_the_head_dim)
    padded = Driver(make_engine(tiny_checkpoint, **ROOM, kv_cache_dtype=kv_cache_dtype))
    pools = padded.core.runner._state.paged.pools
    assert pools[0].shape[-1] == 32 and plain.core.runner._state.paged.pools[0].shape[-1] == 16
    assert padded.core.config.cache.num_pages == plain.core.config.cache.num_pages // 2  # the padding is paid for

    rng = np.random.default_rng(7)
    wishes = [
        Wish(
            rng.integers(5, 512, 3 + 5 * i).tolist(),
            SamplingParams(temperature=0.7 * (i % 2), seed=i, max_tokens=12, ignore_eos=True),
            arrives=i,
        )
        for i in range(8)
    ]
    judge = TieJudge(plain.core, 1e-4 if kv_cache_dtype == "auto" else 0.15)  # see test_engine_equality.FP8_NOISE
    for wish, got, want in zip(wishes, padded.run(wishes), plain.run(wishes), strict=True):
        judge.assert_same(wish, got.token_ids, want.token_ids)
    assert judge.num_ties <= 1
    for pool in padded.core.runner._state.paged.pools:
        assert np.abs(np.asarray(pool, np.float32)[..., :16]).max() > 0
        assert (np.asarray(pool, np.float32)[..., 16:] == 0).all()
