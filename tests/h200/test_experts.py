"""A mixture of experts of Qwen3-30B-A3B's size, compiled for an H200: what it launches, and what it copies."""

import pytest
from h200_cases import EXPERT_STEPS, EXPERTS

MOST_TEMP_MB = {"experts_1": 0.1, "experts_64": 60, "experts_8192": 95}


@pytest.fixture(params=EXPERT_STEPS)
def program(request, experts):
    return experts(request.param)


def test_it_is_one_command_buffer_without_a_sort(program):
    """Loops over tiles included; a sort would be a library's, which no command buffer holds."""
    outside = [launch for launch in program.launches if launch.depth == 0]
    assert [launch.kind for launch in outside] == ["kCommandBuffer"], outside
    assert program.num_sorts == 0


def test_weights_are_read_where_they_lie(program):
    num_experts, size, width = EXPERTS["num_experts"], EXPERTS["size"], EXPERTS["width"]
    for rows, columns in ((2 * width, size), (size, width)):
        assert program.made(num_experts, rows, columns) == program.made(num_experts * rows, columns) == []
        assert program.made(num_experts, columns, rows) == []
    assert program.temp_bytes <= MOST_TEMP_MB[program.name] * 1e6
