"""`jaxserve plan` from the command line: exit codes, both forms of output, every flag that changes memory."""

import json
from pathlib import Path
from typing import Any

import pytest

from jaxserve.cli import main
from jaxserve.core.config import EngineArgs, PlanArgs
from jaxserve.core.errors import ConfigError, DoesNotFit
from jaxserve.plan import Plan, make_plan

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A config file under a name of its own, without weights beside it."""
    file = tmp_path / "llama-8b.json"
    file.write_text(json.dumps(LLAMA_8B))
    return file


def plan(model: Path, device: str = "h100", plan_args: dict[str, Any] | None = None, **args: Any) -> Plan:
    return make_plan(PlanArgs(device=device, **(plan_args or {})), EngineArgs(model=str(model), **args))


def test_a_table_for_people_and_zero(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(llama), "--device", "h100"]) == 0
    out = capsys.readouterr().out
    for words in ("fits            yes", "8.03 billion parameters", "longest context 131,072", "floor", "not measured"):
        assert words in out


def test_json_says_the_same(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(llama), "--device", "h100", "--json", "--max-num-seqs", "40"]) == 0
    found, whole = json.loads(capsys.readouterr().out), plan(llama, max_num_seqs=40)
    assert found["fits"] is True and found["is_floor"] is True
    assert found["num_kv_tokens"] == whole.num_kv_tokens == whole.num_pages * 64
    assert [point["batch"] for point in found["decode"]] == [1, 16, 40]
    assert sum(found["memory"][part] for part in ("weights", "kv_pool", "step", "reserve", "unused")) == int(
        0.92 * 84942979072
    )


def test_what_does_not_fit_is_one_and_names_flag_and_value(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["plan", str(llama), "--device", "rtx4090", "--max-model-len", "100000", "--json"]
    assert main(argv) == 1
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["fits"] is False and found["remedies"] == {"max_model_len": 26048}
    assert "max_model_len to at most 26048" in shown.err
    assert main([*argv, "--max-model-len", "26048"]) == 0
    assert main([*argv, "--max-model-len", "26049"]) == 1


@pytest.mark.parametrize(
    "argv",
    [
        ["--device", "b1000"],
        ["--device", "tflops=3"],
        ["--context-len", "0"],
        ["--compute-efficiency", "1.5"],
        ["--bandwidth-efficiency", "0"],
        ["--gpu-memory-utilization", "2"],
        ["--kv-cache-dtype", "int3"],
        ["--max-model-len", "999999"],
        ["--tensor-parallel-size", "3"],
        ["--speed", "3"],
    ],
)
def test_bad_input_is_two(llama: Path, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(llama), *argv]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("jaxserve: ") and shown.err.count("\n") == 1


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lacks config\.json"):
        plan(tmp_path)


def test_flags_change_the_plan(llama: Path) -> None:
    base = plan(llama)
    assert plan(llama, kv_cache_dtype="fp8").num_kv_tokens == pytest.approx(2 * base.num_kv_tokens, rel=1e-3)
    assert plan(llama, dtype="float32").memory.weights == 2 * base.memory.weights
    assert plan(llama, gpu_memory_utilization=0.5).num_kv_tokens < base.num_kv_tokens
    assert plan(llama, max_num_batched_tokens=1024).num_kv_tokens > base.num_kv_tokens
    assert plan(llama, block_size=16).page_size == 16
    assert plan(llama, kv_cache_memory_bytes=1 << 30).num_kv_tokens == 8192
    assert plan(llama, hf_overrides={"num_hidden_layers": 16}).kv_bytes_per_token == base.kv_bytes_per_token // 2
    assert plan(llama, max_model_len=5000).longest_context == base.longest_context == 131072


def test_efficiencies_make_an_estimate_of_the_floor(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    floor, half = plan(llama), plan(llama, plan_args=dict(bandwidth_efficiency=0.5, compute_efficiency=0.5))
    assert [2 * p.step_ms for p in floor.decode] == pytest.approx([p.step_ms for p in half.decode])
    assert [2 * p.ttft_ms for p in floor.prompts] == pytest.approx([p.ttft_ms for p in half.prompts])
    assert main(["plan", str(llama), "--device", "h100", "--compute-efficiency", "0.75"]) == 0
    out = capsys.readouterr().out
    assert "estimate at 100% of the bandwidth and 75% of the rate" in out and "floor" not in out


def test_an_unknown_rate_predicts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 0  # the demo model on this machine
    assert "speed: not predicted" in capsys.readouterr().out
    assert main(["plan", "--device", "cpu,bandwidth=40GB/s,tflops=0.5", "--context-len", "100"]) == 0
    assert "tokens/s" in capsys.readouterr().out


def test_a_float32_model_is_timed_at_the_float32_rate(llama: Path) -> None:
    fast, slow = plan(llama), plan(llama, dtype="float32")
    assert slow.prompts[-1].ttft_ms > 10 * fast.prompts[-1].ttft_ms


def test_only_batches_that_fit_are_predicted(llama: Path) -> None:
    found = plan(llama, "rtx4090", dict(context_len=4096))
    assert found.num_requests == found.num_pages // 64 == 6
    assert [point.batch for point in found.decode] == [1, 6]


def test_a_share_is_rounded_as_xla_is_told_before_a_larger_one_is_named(llama: Path) -> None:
    """0.1006 is 0.101 to XLA; the whole memory must not be worked out from the former."""
    device = "memory=18800MiB"
    with pytest.raises(DoesNotFit) as caught:
        plan(llama, device, gpu_memory_utilization=0.1006, max_model_len=2048)
    share = caught.value.remedies["gpu_memory_utilization"]
    assert share == 0.97
    assert plan(llama, device, gpu_memory_utilization=share, max_model_len=2048).longest_context >= 2048


def test_two_devices_hold_more(llama, capsys):
    plans: list[dict[str, Any]] = []
    for size in ("1", "2"):
        assert main(["plan", str(llama), "--device", "h200", "-tp", size, "--json"]) == 0
        plans.append(json.loads(capsys.readouterr().out))
    one, two = plans
    assert two["num_devices"] == 2 and two["kv_bytes_per_token"] == one["kv_bytes_per_token"] // 2
    assert two["num_kv_tokens"] > 2 * one["num_kv_tokens"]
    assert two["memory"]["weights"] == pytest.approx(one["memory"]["weights"] / 2, rel=0.01)
    assert two["decode"][0]["step_ms"] < 0.6 * one["decode"][0]["step_ms"]
    main(["plan", str(llama), "--device", "h200", "-tp", "2"])
    assert "on each of 2: what follows is of one" in capsys.readouterr().out
