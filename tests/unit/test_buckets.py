"""The bucket grid holds every step the scheduler may make, and the packed vector round-trips."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxserve.batch.buckets import Bucket, make_grid
from jaxserve.batch.step_batch import PackedStep, unpack


@pytest.mark.parametrize(
    ("max_num_seqs", "budget"), [(1, 16), (4, 8), (7, 33), (64, 64), (64, 512), (256, 8192), (1000, 1000), (100, 64)]
)
def test_every_possible_step_has_a_bucket(max_num_seqs, budget):
    grid = make_grid(max_num_seqs, budget)
    for rows in range(1, min(max_num_seqs, budget) + 1):
        assert grid.pick(rows, rows).is_decode
        for tokens in {rows + 1, (rows + budget) // 2, budget} - {rows}:
            if rows < tokens <= budget:
                bucket = grid.pick(rows, tokens)
                assert bucket.num_rows >= rows and bucket.num_tokens >= tokens and not bucket.is_decode


@pytest.mark.parametrize(("first", "stop", "share"), [(129, 257, 1 / 2), (257, 1025, 1 / 4), (1025, 8193, 1 / 2)])
def test_padding_of_large_steps_is_a_share_of_what_is_computed(first, stop, share):
    grid = make_grid(1024, 8192)
    for tokens in range(first, stop):
        assert grid.pick(1, tokens).num_tokens - tokens <= share * tokens
        if tokens <= 1024:
            assert grid.pick(tokens, tokens).num_rows - tokens <= share * tokens


def test_small_steps_pad_to_at_most_as_much_again():
    grid = make_grid(1024, 8192)
    for tokens in range(1, 130):
        assert grid.pick(tokens, tokens).num_rows < 2 * tokens
        assert grid.pick(1, tokens + 1).num_tokens < 2 * max(tokens + 1, 9)


def test_few_prompts_beside_many_rows_do_not_double_the_step():
    grid = make_grid(1024, 8192)
    for rows in range(256, 768):
        tokens = rows + rows // 8
        assert grid.pick(rows, tokens).num_tokens <= 1.7 * tokens


def test_more_than_the_grid_holds_is_our_own_bug():
    with pytest.raises(AssertionError, match="no bucket"):
        make_grid(4, 16).pick(5, 5)


def test_packed_fields_come_back_as_they_were_written():
    bucket = Bucket(num_tokens=8, num_rows=3)
    packed = PackedStep(bucket, 4, num_slots=99, num_state_rows=7)
    packed["token_ids_T"][:] = np.arange(8)
    packed["temperature_B"][:] = [0.5, 1.0, 1.5]
    packed["query_starts"][:] = [0, 1, 3, 8]
    packed["seeds_B2"][:] = [[1, -2], [3, 4], [5, 6]]
    packed["is_active_B"][:] = [1, 0, 1]
    packed["use_bias"][...] = 1
    batch = unpack(jnp.asarray(packed.vector), bucket, 4)
    for name in ("token_ids_T", "temperature_B", "query_starts", "seeds_B2", "slots_T", "update_rows_U"):
        np.testing.assert_array_equal(getattr(batch, name), packed[name])
    assert batch.is_active_B.tolist() == [True, False, True]
    assert bool(batch.use_bias) and not bool(batch.use_random)
    assert set(np.asarray(batch.slots_T)) == {99} and batch.update_pages_U.shape == (8 // 4 + 3,)
