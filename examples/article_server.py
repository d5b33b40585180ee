"""A published vLLM program, with nothing but its import lines changed (and the request ids it leaves to the reader).

python examples/article_server.py                          the bundled demo model
python examples/article_server.py CHECKPOINT [PROMPT]      your own
"""

import asyncio
import sys
import uuid

from jaxserve import LLM, SamplingParams  # noqa: F401  (the program imports LLM and does not use it)
from jaxserve.engine.arg_utils import AsyncEngineArgs
from jaxserve.engine.async_llm_engine import AsyncLLMEngine


def generate_request_id() -> str:
    return str(uuid.uuid4())


class vLLMServer:  # noqa: N801
    def __init__(self, model_name: str, tensor_parallel_size: int = 1):
        engine_args = AsyncEngineArgs(
            model=model_name,
            tensor_parallel_size=tensor_parallel_size,
            # PagedAttention configuration
            block_size=16,  # Tokens per block
            max_num_batched_tokens=8192,
            max_num_seqs=256,  # Max concurrent requests
            # Memory management
            gpu_memory_utilization=0.95,  # Use 95% of GPU memory
            swap_space=4,  # GB of CPU swap space
            # Performance
            enable_prefix_caching=True,
            disable_log_stats=False,
        )
        self.engine = AsyncLLMEngine.from_engine_args(engine_args)

    async def generate(
        self,
        prompt: str,
        max_tokens: int = 512,
        temperature: float = 0.7,
    ):
        sampling_params = SamplingParams(
            temperature=temperature,
            max_tokens=max_tokens,
            top_p=0.95,
        )
        # Continuous batching handles request scheduling
        result_generator = self.engine.generate(
            prompt,
            sampling_params,
            request_id=generate_request_id(),
        )
        async for output in result_generator:
            yield output


# Key features:
# - PagedAttention for memory efficiency
# - Continuous batching for throughput
# - Prefix caching for common prompts
# - Automatic request scheduling


async def main(model_name: str = "", prompt: str = "Once upon a time", max_tokens: int = 64) -> str:
    """Stream one completion to the terminal; returns its text."""
    server = vLLMServer(model_name)
    text = ""
    try:
        async for output in server.generate(prompt, max_tokens=max_tokens):
            print(output.outputs[0].text[len(text) :], end="", flush=True)
            text = output.outputs[0].text
        print()
    finally:
        server.engine.shutdown()
    return text


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:3]))
