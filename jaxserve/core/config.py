"""Configuration: what the user says (`EngineArgs`) and what the engine runs with (`EngineConfig`).

`EngineArgs` is flat, one field a command-line flag, with "auto" and None where the machine
decides. `resolve` (jaxserve/runner/resolve.py) turns it into the frozen, numeric `EngineConfig`.
"""

import difflib
import functools
from dataclasses import dataclass, field, fields
from typing import Any

from jaxserve.core.errors import ConfigError


def arg(default: Any, help: str, group: str, **extra: Any) -> Any:
    """A field with what its command-line flag needs: help text, group of the --help page, aliases, and `short`: its
    name after a single dash."""
    factory = extra.pop("factory", None)
    metadata = {"help": help, "group": group, **extra}
    if factory is not None:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding parameters, as the checkpoint's config.json names them.

    rope_type: default, linear, dynamic, llama3, yarn or longrope. Other fields hold for the types
    that use them; short_factor and long_factor have one entry a frequency (rotary_dim / 2).
    original_max_position_embeddings: context the model was pretrained at, tokens.
    """

    rope_type: str = "default"
    theta: float = 10000.0
    partial_rotary_factor: float = 1.0
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """The numbers of a Llama-family decoder, dense or with a mixture of experts in some layers.

    num_experts: 0 where all layers are dense; num_experts_per_tok: picked for each token; moe_intermediate_size: width
    of an expert; norm_topk_prob: the weights of a token's experts add up to 1. sparse_layers: one entry a layer,
    whether it has experts in place of a feed-forward of intermediate_size; empty for none.
    expert_parallel: over several devices each has whole experts instead of a part of each; num_expert_shards: of how
    many such devices num_experts are one's share.
    sliding_windows: one entry a layer; tokens a query may look back on (itself included), None for all.
    dtype: of weights and activations: float32, bfloat16 or float16.
    eos_token_ids: ids that end a sequence, from config.json and generation_config.json.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_windows: tuple[int | None, ...] = ()
    rope: RopeConfig = RopeConfig()
    dtype: str = "bfloat16"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = False
    sparse_layers: tuple[bool, ...] = ()
    expert_parallel: bool = False
    num_expert_shards: int = 1


@dataclass(frozen=True)
class CacheConfig:
    """num_pages: pages in the pool; page_size: tokens in one."""

    page_size: int
    num_pages: int
    enable_prefix_caching: bool = True


@dataclass(frozen=True)
class PoolConfig:
    """How keys and values lie on the device.

    dtype: float32, bfloat16, float16, float8_e4m3fn or float8_e5m2. head_dim: numbers kept of a key or value,
    at least the model's; the rest is padding for kernels that take some sizes only.
    """

    dtype: str
    head_dim: int


@dataclass(frozen=True)
class SchedulerConfig:
    """Limits of one step and of the queue.

    max_num_seqs: requests running together; max_num_batched_tokens: tokens computed in one step;
    max_model_len: prompt plus output tokens of one request.
    long_prefill_token_threshold: a prompt chunk's cap in tokens, 0 for none.
    policy: "fcfs" or "priority". max_num_queued_reqs, max_num_queued_tokens: waiting at most, None = no limit.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    policy: str = "fcfs"
    max_num_queued_reqs: int | None = None
    max_num_queued_tokens: int | None = None


@dataclass(frozen=True)
class EngineConfig:
    """Everything the engine runs with, resolved to numbers.

    model_path: the local checkpoint directory. max_logprobs: the most log probabilities a request
    may ask for (-1: the whole vocabulary). check_inputs: validate every page table before dispatch.
    attention_implementation: see `pallas_kernels.ragged_paged_attention`; a program for a device that
    is not there must name one, as "auto" looks at the devices that are.
    tensor_parallel_size: devices that each layer is cut over; page and pool are of one of them.
    """

    model: ModelConfig
    cache: CacheConfig
    pool: PoolConfig
    scheduler: SchedulerConfig
    model_path: str
    load_format: str = "auto"
    seed: int = 0
    max_logprobs: int = 20
    check_inputs: bool = False
    compilation_cache_dir: str | None = None
    attention_implementation: str = "auto"
    tensor_parallel_size: int = 1

    @property
    def num_logprobs(self) -> int:
        """Entries in every list of most likely tokens that a step returns."""
        return self.max_logprobs if self.max_logprobs >= 0 else self.model.vocab_size


def take_aliases[T](cls: type[T]) -> type[T]:
    """A dataclass whose constructor also takes the aliases of its fields.

    The constructor raises ConfigError for an unknown name (naming the nearest) and for a field given twice.
    """
    init = cls.__init__
    known = {f.name: f.name for f in fields(cls)}  # pyright: ignore[reportArgumentType]
    known |= {alias: f.name for f in fields(cls) for alias in f.metadata.get("aliases", ())}  # pyright: ignore[reportArgumentType]

    @functools.wraps(init)
    def wrapped(self: T, *args: Any, **kwargs: Any) -> None:
        given: dict[str, Any] = {}
        for name, value in kwargs.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"{name!r} is not an engine argument{hint}")
            if known[name] in given:
                raise ConfigError(f"{known[name]!r} is given twice, once under another of its names")
            given[known[name]] = value
        init(self, *args, **given)

    cls.__init__ = wrapped
    return cls


@take_aliases
@dataclass
class EngineArgs:
    """What a user may say about the engine; names and defaults as vLLM's where it has them."""

    model: str = arg("", "Checkpoint directory or hub id; the bundled demo model if empty.", "model")
    tokenizer: str | None = arg(None, "Tokenizer directory or hub id; the model's own if unset.", "model")
    revision: str | None = arg(None, "Branch, tag or commit on the hub.", "model")
    served_model_name: str | None = arg(None, "Name clients use; the model's name if unset.", "model")
    dtype: str = arg("auto", "auto, float32, bfloat16 or float16; auto takes the checkpoint's.", "model")
    load_format: str = arg(
        "auto",
        "auto reads what the checkpoint holds, safetensors or orbax (`jaxserve convert`); dummy makes random weights.",
        "model",
    )
    max_model_len: int | str = arg(
        "auto", "Prompt plus output tokens of a request; auto takes the longest that fits.", "model"
    )
    hf_overrides: dict[str, Any] | None = arg(None, "JSON object laid over the checkpoint's config.json.", "model")
    generation_config: str = arg("auto", "auto adopts the checkpoint's sampling defaults; vllm ignores them.", "model")
    chat_template: str | None = arg(None, "Chat template: a file or the template itself.", "model")
    trust_remote_code: bool = arg(False, "Accepted for compatibility; code from a checkpoint is never run.", "model")
    seed: int = arg(0, "Seed of dummy weights and of requests without a seed of their own.", "model")
    page_size: int | None = arg(
        None, "Tokens in a page of the KV pool; 64 on a GPU, 32 on a CPU if unset.", "cache", aliases=("block_size",)
    )
    gpu_memory_utilization: float = arg(
        0.92, "Share of the device's memory the engine may use.", "cache", aliases=("device_memory_utilization",)
    )
    kv_cache_memory_bytes: int | None = arg(
        None, "Bytes of the KV pool; overrides gpu_memory_utilization. On a CPU 1 GiB if unset.", "cache"
    )
    kv_cache_dtype: str = arg(
        "auto",
        "auto (the model's dtype), bfloat16, float16, float32, fp8 (that is fp8_e4m3) or fp8_e5m2; fp8 holds twice the tokens of 16 bits, scaled where the checkpoint has k_scale and v_scale.",
        "cache",
    )
    enable_prefix_caching: bool = arg(True, "Share the pages of equal prompt prefixes.", "cache")
    swap_space: float | None = arg(None, "Accepted for compatibility and ignored: preemption recomputes.", "cache")
    max_num_seqs: int | None = arg(None, "Requests running together; 256 on a GPU, 64 on a CPU if unset.", "scheduler")
    max_num_batched_tokens: int | None = arg(
        None, "Tokens computed in one step; 8192 on a GPU, 512 on a CPU if unset.", "scheduler"
    )
    enable_chunked_prefill: bool = arg(True, "Split long prompts over several steps.", "scheduler")
    long_prefill_token_threshold: int = arg(0, "Cap of one prompt chunk in tokens; 0 for none.", "scheduler")
    scheduling_policy: str = arg("fcfs", "fcfs or priority.", "scheduler")
    max_num_queued_reqs: int | None = arg(None, "Requests that may wait; more are refused with 503.", "scheduler")
    max_num_queued_tokens: int | None = arg(
        None, "Prompt tokens that may wait; more are refused with 503.", "scheduler"
    )
    async_scheduling: bool = arg(
        True, "Dispatch the next step before the last one's tokens are read; no output depends on it.", "scheduler"
    )
    tensor_parallel_size: int = arg(1, "Devices that each layer of the model is cut over.", "parallel", short="tp")
    data_parallel_size: int = arg(
        1,
        "Replicas of the engine in one server, a process and tensor_parallel_size devices each, behind one queue.",
        "parallel",
        short="dp",
    )
    enable_expert_parallel: bool = arg(
        False,
        "Give each tensor-parallel device whole experts of a mixture instead of a part of every one.",
        "parallel",
    )
    nnodes: int | str = arg(
        1,
        "Hosts that share the model, a process each; auto asks LeaderWorkerSet or Slurm. See docs/multihost.md.",
        "parallel",
    )
    node_rank: int | None = arg(
        None, "Which of the nnodes hosts this is; 0 serves HTTP, the others follow.", "parallel"
    )
    master_addr: str | None = arg(None, "Address of host 0, as every host reaches it.", "parallel")
    master_port: int = arg(29501, "Where host 0 listens for the others, with the port after it.", "parallel")
    max_logprobs: int = arg(
        20, "The most log probabilities a request may ask for; -1 for the whole vocabulary.", "sampling"
    )
    disable_log_stats: bool = arg(False, "Do not log throughput every 10 s.", "log")
    device_peaks: str | None = arg(
        None,
        "What the roofline meter measures steps against: h200, or bandwidth=1008GB/s,tflops=165; the figures known by the device's name if unset.",
        "log",
    )
    enable_log_requests: bool = arg(
        False, "Log each request's parameters (never its prompt unless max_log_len says so).", "log"
    )
    max_log_len: int | None = arg(None, "Prompt characters logged with enable_log_requests.", "log")
    compilation_cache_dir: str | None = arg(
        None, "Where compiled steps are kept; ~/.cache/jaxserve if unset, 'off' for none.", "engine"
    )
    bundle: str | None = arg(
        None,
        "File of `jaxserve compile`: its programs are loaded, nothing is compiled; refused where it does not fit.",
        "engine",
    )
    bundle_sha256: str | None = arg(None, "Refuse a bundle whose fingerprint is not this one.", "engine")
    compile_in_background: bool = arg(
        False, "Serve as soon as the largest steps are compiled, padding up, while the others follow.", "engine"
    )
    check_inputs: bool = arg(False, "Validate every page table and slot before each step (debugging).", "engine")
    engine_process: bool = arg(True, "Run the engine in a process of its own.", "engine")


class AsyncEngineArgs(EngineArgs):
    """The name users of today's engines import; the same fields."""


@dataclass
class PlanArgs:
    """Flags of `jaxserve plan` beside the engine's."""

    device: str = arg(
        "cpu",
        "h200, h100, a100, a100-40gb, rtx4090; cpu for this machine; or memory=24GiB,bandwidth=1008GB/s,tflops=165, also after a name to change it (h200,bandwidth=4.3TB/s).",
        "plan",
    )
    context_len: int = arg(1024, "Tokens of context of each request where tokens/s are predicted.", "plan")
    bandwidth_efficiency: float = arg(1.0, "Share of the memory bandwidth assumed; 1 predicts the floor.", "plan")
    compute_efficiency: float = arg(1.0, "Share of the matrix rate assumed; 1 predicts the floor.", "plan")
    json: bool = arg(False, "Print one JSON object instead of tables.", "plan")
