"""Every kernel, over the corners of its contract, compiled for an H200: it fits, and keeps its values in registers."""

import pytest
from h200_cases import KERNELS

pytestmark = pytest.mark.timeout(900)  # the first test compiles all cases: a minute on two idle cores

# 64 rows of 256 values in float32 are 128 registers of each thread before anything else.
_SPILLS = {"page_16_head_256", "chunks_page_16_head_256"} | {
    name for name, case in KERNELS.items() if case["pool_dtype"] is not None and case["head_dim"] == 256
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.xfail(reason="the decode kernel spills at head size 256 with pages of 16 or of 8 bits"),
        )
        if name in _SPILLS
        else name
        for name in KERNELS
    ],
)
def test_no_kernel_spills(kernels, name):
    found = kernels(name).kernels
    assert found
    assert all(kernel.spill_bytes == 0 and kernel.stack_bytes == 0 for kernel in found), found
    assert all(kernel.registers <= 255 for kernel in found), found
