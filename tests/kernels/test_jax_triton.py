"""The jax-triton backend where no GPU is: who is refused and what is imported. Compiling: tests/h200."""

import subprocess
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import CASES, make_case
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import ragged_paged_attention
from pallas_kernels.jax_triton import door, ragged
from pallas_kernels.jax_triton.chunk_plan import plan_chunks
from pallas_kernels.tuning import triton_config


@settings(max_examples=60, deadline=None)
@given(
    singles=st.integers(0, 4),
    chunks=st.lists(st.integers(1, 300), max_size=6),
    num_padding=st.integers(0, 3),
    spare=st.integers(0, 40),
    tile=st.sampled_from([1, 5, 16, 128]),
)
def test_every_tile_of_queries_is_listed_once_the_last_of_a_row_first(
    singles: int, chunks: list[int], num_padding: int, spare: int, tile: int
) -> None:
    lens = [1] * singles + chunks + [0] * num_padding
    starts = np.concatenate([[0], np.cumsum(lens)]).astype(np.int32)
    num_rows, num_tokens = len(lens), max(int(starts[-1]) + spare, len(lens), 1)
    if num_rows == 0:
        return
    counts = jnp.array([singles, singles + len(chunks)], jnp.int32)
    items = np.asarray(plan_chunks(jnp.asarray(starts), counts, tile=tile, num_tokens=num_tokens)).tolist()
    want = [(singles + i, t) for i, n in enumerate(chunks) for t in range(-(-n // tile))]
    got = [(row, number) for row, number in items if row >= 0]
    assert got == want[::-1]
    assert len(items) <= num_tokens


def test_nothing_of_triton_is_imported_until_a_kernel_is_asked_for() -> None:
    code = (
        "import sys, pallas_kernels, jaxserve.sampling.sampler; assert not {'triton', 'jax_triton'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_asked_for_by_name_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays, _ = make_case(**CASES["decode_alone"])
    monkeypatch.setattr("pallas_kernels.paged_attention.missing", lambda: "jax-triton is not installed")
    with pytest.raises(ValueError, match="cannot be used: jax-triton is not installed"):
        ragged_paged_attention(*arrays, scale=1.0, implementation="jax_triton")


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"head_dim": 512}, "head size 512"),
        ({"head_dim": 20}, "head size 20"),
        ({"heads": 64, "kv_heads": 1}, "64 query heads"),
    ],
)
def test_refuses_what_no_kernel_was_made_for(shape: dict[str, Any], reason: str) -> None:
    arrays, _ = make_case(**(CASES["decode_alone"] | shape))
    with pytest.raises(ValueError, match=f"does not take {reason}"):
        ragged_paged_attention(*arrays, scale=1.0, implementation="jax_triton")


def test_pools_of_other_types(monkeypatch: pytest.MonkeyPatch) -> None:
    (q, pool, *_), _ = make_case(**CASES["decode_alone"])
    assert ragged.unsupported(q, pool) is None
    assert "float16" in (ragged.unsupported(q, pool.astype(jnp.float16)) or "")
    assert ragged.unsupported(q, pool.astype(jnp.float8_e4m3fn)) is None
    monkeypatch.setattr(ragged, "compute_capability", lambda: 80)
    assert "8.9" in (ragged.unsupported(q, pool.astype(jnp.float8_e4m3fn)) or "")


class _Device:
    def __init__(self, compute_capability: str) -> None:
        self.compute_capability = compute_capability
        self.device_kind = "a device"


@pytest.mark.parametrize(("found", "number"), [("8.9", 89), ("12.0", 120), ("gfx942", None), ("", None)])
def test_reads_the_compute_capability(found: str, number: int | None) -> None:
    assert door.capability_of(_Device(found)) == number


def test_cards_before_ampere_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "missing", lambda: None)
    assert "8.0 or later" in (door.missing_on(_Device("7.5")) or "")
    assert door.missing_on(_Device("8.0")) is None


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("group", [1, 16, 32])
@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("num_lines", [1, 4096, 10**6])
def test_an_operand_holds_a_whole_group(
    capability: int, head_dim: int, group: int, itemsize: int, num_lines: int
) -> None:
    config = triton_config(
        compute_capability=capability, head_dim=head_dim, itemsize=itemsize, group=group, num_lines=num_lines
    )
    assert config.chunk_rows >= group and config.compute_capability == capability
