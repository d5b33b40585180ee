"""The reader of compilers' output itself: what it must see and what it must not."""

import json

import pytest
from compiled_program import Kernel, Launch, Program

HLO = """HloModule jit_step
%fused (p: bf16[8,4]) -> f32[8,4] {
  ROOT %c = f32[8,4]{1,0} copy(%p), metadata={}
}
ENTRY %main (a: bf16[8,4]) -> f32[8,4] {
  %a = bf16[8,4]{1,0} parameter(0)
  %v = bf16[8,4]{1,0} get-tuple-element(%t), index=0
  %copy.1 = bf16[8,4]{1,0} copy(%a)
  %call = (bf16[8,4]{1,0}, f32[2]{0}) custom-call(%a), custom_call_target="mosaic_gpu_v2"
  ROOT %f = f32[8,4]{1,0} fusion(%copy.1), kind=kLoop, calls=%fused
}
"""
THUNKS = """000: kCommandBuffer [source | next=004 (1)]
    001: kCustomKernel [source        | next=002 (1)] gemm_fusion_dot_1 grid: [3072, 1, 1] threads: [64, 1, 1]
    002: kCustomCall   [prev=001 (1)  | sink        ] kCustomCall
004: kConditional  [prev=000 (1)  | sink]
      false_branch:
        003: kCopy [source | sink] kCopy
"""
PTXAS = """ptxas info    : Compiling entry function 'body' for 'sm_90a'
    104 bytes stack frame, 100 bytes spill stores, 140 bytes spill loads
ptxas info    : Used 255 registers, used 2 barriers
"""


@pytest.fixture
def make_program(tmp_path):
    def make(**changes):
        files = {"hlo": HLO, "thunks": THUNKS, "ptxas": PTXAS} | changes
        for name, text in files.items():
            (tmp_path / f"{name}.txt").write_text(text)
        (tmp_path / "memory.json").write_text(json.dumps(dict(argument=4, output=3, alias=2, temp=1)))
        return Program(tmp_path)

    return make


def test_sees_copies_and_conversions_but_not_within_fusions(make_program):
    assert make_program().made(8, 4) == ["bf16 copy", "f32 fusion"]
    assert make_program().made(8, 5) == []
    assert make_program().num_calls == 1


def test_sees_what_is_launched_and_where(make_program):
    program = make_program()
    assert [launch.depth for launch in program.launches] == [0, 1, 1, 0, 2]
    assert program.launches[1] == Launch(1, "kCustomKernel", "gemm_fusion_dot_1")
    assert [x.is_product for x in program.launches[1:3]] == [True, False]
    assert [x.is_ours for x in program.launches[1:3]] == [False, True]


def test_sees_spills(make_program):
    assert make_program().kernels == [Kernel(registers=255, stack_bytes=104, spill_bytes=240)]


def test_refuses_what_it_does_not_understand(make_program):
    with pytest.raises(ValueError, match="not every line"):
        _ = make_program(thunks=THUNKS + "000 kCommandBuffer [source | sink]\n").launches
    with pytest.raises(ValueError, match="not every line"):
        _ = make_program(thunks="").launches
    with pytest.raises(ValueError, match="no instruction"):
        make_program(hlo="module").made(8, 4)
    with pytest.raises(ValueError, match="registers"):
        _ = make_program(ptxas="Compiling entry function 'body'").kernels
    with pytest.raises(ValueError, match="1 calls of kernels"):
        make_program().between_layers(2)
