"""The jax-triton kernels compiled for several generations of cards: each does, and keeps its values in registers."""

import pytest
from h200_cases import TRITON, TRITON_FILTERS

pytestmark = pytest.mark.timeout(900)  # the first test compiles all cases: a minute on two idle cores

CASES = [(name, capability) for name, case in (TRITON | TRITON_FILTERS).items() for capability in case["capabilities"]]
# Bytes a thread, stores and loads. Before Hopper the operands of a product sit in registers too.
MOST_SPILLED = {80: 24, 89: 24, 90: 0}


@pytest.mark.parametrize(("name", "capability"), CASES)
def test_it_compiles_and_hardly_spills(triton_kernels, name, capability):
    found = triton_kernels(f"{name}_{capability}")
    assert found
    assert all(kernel.spill_bytes <= MOST_SPILLED[capability] for kernel in found), found
