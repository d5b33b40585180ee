"""Collectives read from a compiled program, and what they take over links of stated speed."""

import xml.etree.ElementTree as ET

import pytest

from jaxserve.bench.link_model import Collective, Links, collectives_of
from jaxserve.bench.scaling_plot import plot

LINKS = Links(start_s=10e-6, bandwidth=400e9, hosts_start_s=30e-6, hosts_bandwidth=50e9)
HLO = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%rarely (p: f32[64]) -> f32[64] {
  ROOT %all-reduce.9 = f32[64]{0} all-reduce(%p), channel_id=4, to_apply=%add
}

%command_buffer (p: bf16[64,8192]) -> bf16[64,8192] {
  %all-reduce.1 = bf16[64,8192]{1,0} all-reduce(%p), channel_id=1, to_apply=%add
  %all-gather-start.1 = ((f32[1,64]{1,0}), f32[2,64]{1,0}) all-gather-start(%q), channel_id=2, dimensions={0}
  %all-gather-done.1 = f32[2,64]{1,0} all-gather-done(%all-gather-start.1)
  ROOT %conditional = f32[64]{0} conditional(%c, %x, %y), branch_computations={%rarely, %rarely.1}
}

%body (p: f32[8]) -> f32[8] {
  ROOT %all-reduce.3 = f32[8]{0} all-reduce(%p), channel_id=5, to_apply=%add
}

ENTRY %main (p: bf16[64,8192]) -> bf16[64,8192] {
  %while.1 = f32[8]{0} while(%i), condition=%until, body=%body
  %call = bf16[64,8192]{1,0} call(%p), to_apply=%command_buffer
  ROOT %all-gather.2 = (s32[2,64]{1,0}, f32[2,64]{1,0}) all-gather(%a, %b), channel_id=3, dimensions={0}
}
"""


def test_what_every_run_makes_is_found_with_its_bytes() -> None:
    assert collectives_of(HLO) == [
        Collective("all-reduce", 2 * 64 * 8192),
        Collective("all-gather", 4 * 2 * 64),
        Collective("all-gather", 2 * 4 * 2 * 64),
    ]


@pytest.mark.parametrize(
    ("kind", "devices", "hosts", "expected"),
    [
        ("all-reduce", 1, 1, 0.0),
        ("all-reduce", 2, 1, 10e-6 + 1e6 / 400e9),
        ("all-reduce", 8, 1, 10e-6 + 1.75e6 / 400e9),
        ("all-gather", 8, 1, 10e-6 + 0.875e6 / 400e9),
        ("all-reduce", 16, 2, 30e-6 + 1.875e6 / 50e9),
    ],
)
def test_a_ring_carries_its_share(kind: str, devices: int, hosts: int, expected: float) -> None:
    assert LINKS.seconds(Collective(kind, 1_000_000), devices, hosts) == pytest.approx(expected)


def test_the_plot_has_a_point_a_mesh_and_its_title() -> None:
    drawn = ET.fromstring(plot("a < b", [1, 2, 4], [100.0, 150.0, 260.0]))
    tags = [one.tag.rpartition("}")[2] for one in drawn]
    assert tags.count("circle") == 3 and tags.count("polyline") == 2
    texts = [one.text for one in drawn if one.tag.endswith("text")]
    assert {"a < b", "100", "150", "260", "1", "2", "4"} <= set(texts)
    heights = [float(one.attrib["cy"]) for one in drawn if one.tag.endswith("circle")]
    assert heights == sorted(heights, reverse=True)
