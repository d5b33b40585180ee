"""Floors follow from shapes: against sums done by hand and against counting one by one."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.core.config import ModelConfig, PoolConfig
from jaxserve.models.shard import shard_of
from jaxserve.runner.memory import dense_matrix_parameters, num_parameters
from jaxserve.runner.roofline import Rates, StepCost, StepCosts, decode_s, matrices_read, matrices_used, prefill_s
from jaxserve.schedule.output import ScheduledRow, SchedulerOutput

LLAMA_8B = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=128256,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    intermediate_size=14336,
    max_position_embeddings=131072,
)
POOL = PoolConfig("bfloat16", 128)
H200 = Rates(4.3e12, 790e12)  # a round copy bandwidth and matrix rate
TINY = replace(LLAMA_8B, vocab_size=50, hidden_size=8, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=2)
MEMORY_ONLY, COMPUTE_ONLY = Rates(1.0, float("inf")), Rates(float("inf"), 1.0)


@pytest.mark.parametrize(
    ("num_rows", "context_len", "milliseconds"),
    # 15.01 GB of weights a step and 131,072 bytes of keys and values a token
    [(1, 1024, 3.52), (32, 1024, 4.49), (128, 1024, 7.49), (256, 1024, 12.85), (256, 2048, 20.85), (1, 32768, 4.49)],
)
def test_decode_of_llama_8b(num_rows: int, context_len: int, milliseconds: float) -> None:
    step_s = decode_s(LLAMA_8B, POOL, H200, num_rows=num_rows, context_len=context_len, itemsize=2)
    assert step_s * 1e3 == pytest.approx(milliseconds, rel=2e-3)


@pytest.mark.parametrize(("num_tokens", "milliseconds"), [(1024, 18.4), (2048, 37.6), (8192, 167), (32768, 935)])
def test_a_prompt_of_llama_8b(num_tokens: int, milliseconds: float) -> None:
    """By hand without reading the head: 0.24 ms less."""
    whole_s = prefill_s(LLAMA_8B, POOL, H200, num_tokens=num_tokens, chunk=8192, itemsize=2)
    assert whole_s * 1e3 - 0.244 == pytest.approx(milliseconds, rel=3e-3)


@pytest.mark.parametrize("windows", [(None,) * 3, (4, 4, 4), (4, None, 9)])
@pytest.mark.parametrize("chunk", [1, 5, 8, 100])
def test_attention_counts_each_pair_once(windows: tuple[int | None, ...], chunk: int) -> None:
    model, num_tokens = replace(TINY, sliding_windows=windows), 23
    pairs = sum(
        sum(1 for key in range(query + 1) if window is None or query - key < window)
        for window in windows
        for query in range(num_tokens)
    )
    matrices = 3 * (8 * (4 + 2 * 2) * 2 + 4 * 2 * 8 + 3 * 8 * 14336)
    by_hand = 2 * matrices * num_tokens + 2 * 50 * 8 + pairs * 4 * 4 * 2
    pool = PoolConfig("float32", 2)
    assert prefill_s(model, pool, COMPUTE_ONLY, num_tokens=num_tokens, chunk=chunk, itemsize=4) == by_hand


@pytest.mark.parametrize("windows", [(None,) * 3, (4, None, 9)])
def test_a_prompt_reads_weights_and_visible_keys_a_chunk(windows: tuple[int | None, ...]) -> None:
    model, num_tokens, chunk = replace(TINY, sliding_windows=windows), 23, 5
    matrices = 3 * (8 * (4 + 2 * 2) * 2 + 4 * 2 * 8 + 3 * 8 * 14336)
    read = 0
    for start in range(0, num_tokens, chunk):
        queries = range(start, min(start + chunk, num_tokens))
        for window in windows:
            seen = {key for q in queries for key in range(q + 1) if window is None or q - key < window}
            read += len(seen) * 2 * 2 * 2 * 4
    pool = PoolConfig("float32", 2)
    whole = prefill_s(model, pool, MEMORY_ONLY, num_tokens=num_tokens, chunk=chunk, itemsize=4)
    assert whole == 5 * matrices * 4 + 50 * 8 * 4 + read


def test_padding_and_dtype_of_the_pool_and_width_of_the_weights_are_read() -> None:
    def step(pool: PoolConfig, itemsize: int = 2) -> float:
        return decode_s(TINY, pool, MEMORY_ONLY, num_rows=2, context_len=10, itemsize=itemsize)

    weights = (3 * (8 * (4 + 2 * 2) * 2 + 4 * 2 * 8 + 3 * 8 * 14336) + 50 * 8) * 2
    assert step(PoolConfig("bfloat16", 2)) == weights + 3 * 2 * 10 * 2 * 2 * 2 * 2
    assert step(PoolConfig("bfloat16", 4)) == weights + 3 * 2 * 10 * 2 * 2 * 4 * 2
    assert step(PoolConfig("float8_e4m3fn", 2)) == weights + 3 * 2 * 10 * 2 * 2 * 2
    assert step(PoolConfig("bfloat16", 2), 4) == 2 * weights + 3 * 2 * 10 * 2 * 2 * 2 * 2


def a_step(rows: list[tuple[int, int]], *, samples: bool = True) -> SchedulerOutput:
    """rows: (tokens in the pool already, tokens of this step), single ones first as the scheduler has them."""
    ordered = sorted(rows, key=lambda row: row[1] > 1)
    scheduled = [
        ScheduledRow(f"r{i}", i, start, [7] * count, [], samples, start + count)
        for i, (start, count) in enumerate(ordered)
    ]
    return SchedulerOutput(1, scheduled, [], sum(count for _, count in rows))


@pytest.mark.parametrize("windows", [(), (4, None, 9)])
@pytest.mark.parametrize("rates", [H200, Rates(1.0, 3.0), MEMORY_ONLY, COMPUTE_ONLY])
@pytest.mark.parametrize(("num_rows", "context_len"), [(1, 1), (3, 20), (256, 1024)])
def test_a_decode_step_costs_what_plans_say(
    windows: tuple[int | None, ...], rates: Rates, num_rows: int, context_len: int
) -> None:
    model = replace(TINY, sliding_windows=windows)
    cost = StepCosts(model, POOL, rates, itemsize=2).of(a_step([(context_len - 1, 1)] * num_rows))
    whole_s = decode_s(model, POOL, rates, num_rows=num_rows, context_len=context_len, itemsize=2)
    if not windows:  # plans take attention's layers together, a step takes those of each window
        assert cost.floor_s == pytest.approx(whole_s)
    assert cost.floor_s >= whole_s * (1 - 1e-9)


@pytest.mark.parametrize("windows", [(), (4, None, 9)])
@pytest.mark.parametrize("chunk", [2, 5, 23, 100])
@pytest.mark.parametrize("rates", [Rates(1.0, 3.0), MEMORY_ONLY, COMPUTE_ONLY])
def test_chunks_cost_what_plans_say(windows: tuple[int | None, ...], chunk: int, rates: Rates) -> None:
    model, num_tokens = replace(TINY, sliding_windows=windows), 24
    costs = StepCosts(model, POOL, rates, itemsize=2)
    starts = range(0, num_tokens, chunk)
    steps = [
        costs.of(a_step([(start, min(chunk, num_tokens - start))], samples=start + chunk >= num_tokens))
        for start in starts
    ]
    whole_s = prefill_s(model, POOL, rates, num_tokens=num_tokens, chunk=chunk, itemsize=2)
    assert sum(step.floor_s for step in steps) == pytest.approx(whole_s)


@given(
    rows=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), min_size=1, max_size=12),
    windows=st.sampled_from([(), (4, None, 9), (1, 1, 100)]),
)
def test_bytes_and_operations_are_those_counted_one_by_one(
    rows: list[tuple[int, int]], windows: tuple[int | None, ...]
) -> None:
    model, layer = replace(TINY, sliding_windows=windows), 8 * (4 + 2 * 2) * 2 + 4 * 2 * 8 + 3 * 8 * 14336
    read_tokens = pairs = 0
    for start, count in rows:
        for window in windows or (None,) * 3:
            seen = [
                [key for key in range(query + 1) if window is None or query - key < window]
                for query in range(start, start + count)
            ]
            pairs += sum(len(keys) for keys in seen)
            read_tokens += len({key for keys in seen for key in keys})
    num_tokens = sum(count for _, count in rows)
    cost = StepCosts(model, PoolConfig("bfloat16", 4), None, itemsize=2).of(a_step(rows))
    assert cost.read_bytes == 3 * layer * 2 + 50 * 8 * 2 + read_tokens * 2 * 2 * 4 * 2
    assert cost.write_bytes == 3 * num_tokens * 2 * 2 * 4 * 2
    assert cost.flops == 2 * 3 * layer * num_tokens + 2 * 50 * 8 * len(rows) + pairs * 4 * 4 * 2
    assert cost.floor_s == 0


def test_a_kernel_counts_for_what_limits_it() -> None:
    cost = StepCost()
    cost.add(8, 4, Rates(2.0, 4.0))
    cost.add(8, 100, Rates(2.0, 4.0))
    assert (cost.memory_s, cost.compute_s, cost.floor_s) == (4.0, 25.0, 29.0)


QWEN3_30B_A3B = replace(
    LLAMA_8B,
    architecture="Qwen3MoeForCausalLM",
    vocab_size=151936,
    hidden_size=2048,
    num_layers=48,
    num_kv_heads=4,
    intermediate_size=6144,
    qk_norm=True,
    num_experts=128,
    num_experts_per_tok=8,
    moe_intermediate_size=768,
    sparse_layers=(True,) * 48,
)


def test_of_experts_those_that_are_picked_are_computed_and_read() -> None:
    assert num_parameters(QWEN3_30B_A3B) == 30_532_122_624  # as its model card says, 30.5 billion
    attention_and_router = 48 * (2048 * (40 + 32) * 128 + 128 * 2048)
    an_expert = 48 * 3 * 2048 * 768
    assert matrices_used(QWEN3_30B_A3B) == attention_and_router + 8 * an_expert
    assert matrices_read(QWEN3_30B_A3B, 1) == attention_and_router + 8 * an_expert
    assert matrices_read(QWEN3_30B_A3B, 2) == attention_and_router + int(15.5 * an_expert)  # half of one is shared
    assert matrices_read(QWEN3_30B_A3B, 10_000) == attention_and_router + 128 * an_expert


def test_devices_share_the_experts_work() -> None:
    """Each with whole ones: together they read and compute what one device would."""
    whole = replace(QWEN3_30B_A3B, expert_parallel=True)
    share = shard_of(whole, 4)
    same_everywhere = 48 * 128 * 2048  # the router
    for of_model in (matrices_used, lambda model: matrices_read(model, 3)):
        attention = 4 * (dense_matrix_parameters(share) - same_everywhere)
        experts = of_model(share) - dense_matrix_parameters(share)
        assert attention + same_everywhere + 4 * experts == pytest.approx(of_model(whole), abs=4)


def test_layers_without_experts_count_as_dense_ones() -> None:
    model = replace(QWEN3_30B_A3B, sparse_layers=(True,) * 47 + (False,))
    more = 3 * 2048 * 6144 - 128 * 3 * 2048 * 768 - 128 * 2048
    assert num_parameters(model) - num_parameters(QWEN3_30B_A3B) == more


@pytest.mark.parametrize("rates", [H200, MEMORY_ONLY, COMPUTE_ONLY])
def test_a_step_with_experts_costs_what_plans_say(rates: Rates) -> None:
    costs = StepCosts(QWEN3_30B_A3B, POOL, rates, itemsize=2)
    decode = decode_s(QWEN3_30B_A3B, POOL, rates, num_rows=5, context_len=50, itemsize=2)
    prefill = prefill_s(QWEN3_30B_A3B, POOL, rates, num_tokens=40, chunk=100, itemsize=2)
    assert costs.of(a_step([(49, 1)] * 5)).floor_s >= decode * (1 - 1e-9)
    assert costs.of(a_step([(0, 40)])).floor_s == pytest.approx(prefill)
