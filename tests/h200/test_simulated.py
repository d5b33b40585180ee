"""`jaxserve bench multihost --simulate`: compiled for H200s that are not there, and added up."""

import pytest

pytestmark = pytest.mark.timeout(600)


def test_a_step_is_the_floor_and_the_programs_own_collectives(simulated):
    assert simulated["simulated"] is True and simulated["device"] == "simulated h200"
    links = simulated["assumed"]
    few, many = simulated["meshes"]
    assert [(one["tensor_parallel_size"], one["num_hosts"]) for one in (few, many)] == [(2, 1), (16, 2)]
    for mesh in (few, many):
        for step in mesh["steps"]:
            sums_bytes = 3 * 2 * step["num_tokens"] * 4096  # of one layer and the embedding, bfloat16
            assert sums_bytes <= step["collective_bytes"] < sums_bytes * 1.01 + 100_000
            start_us = links["link_start_us" if mesh is few else "hosts_link_start_us"]
            assert step["sums_ms"] > step["num_collectives"] * start_us / 1e3
            assert step["step_ms"] > step["sums_ms"]
    assert many["steps"][0]["sums_share"] > few["steps"][0]["sums_share"]
    shares = [mesh["steps"][0]["step_ms"] - mesh["steps"][0]["sums_ms"] for mesh in (few, many)]
    assert shares[1] < shares[0] / 4  # each device has an eighth of what it had, keys and values aside
