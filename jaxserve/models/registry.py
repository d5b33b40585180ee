"""Which class serves which architecture: one line a family."""

from jaxserve.core.errors import ConfigError
from jaxserve.models.llama import Llama
from jaxserve.models.mixtral import Mixtral

MODELS: dict[str, type[Llama]] = {
    "LlamaForCausalLM": Llama,
    "MistralForCausalLM": Llama,
    "Qwen2ForCausalLM": Llama,
    "Qwen3ForCausalLM": Llama,
    "MixtralForCausalLM": Mixtral,
    "Qwen3MoeForCausalLM": Mixtral,
}


def model_class(architecture: str) -> type[Llama]:
    """The model class of an architecture; ConfigError, with the list, if there is none."""
    if architecture not in MODELS:
        raise ConfigError(f"Architecture {architecture} is not supported; supported: {', '.join(MODELS)}.")
    return MODELS[architecture]
