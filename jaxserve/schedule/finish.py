"""When a token stream ends, by its tokens alone (stop strings are found where there is text)."""

from collections.abc import Collection

from jaxserve.core.outputs import FinishReason
from jaxserve.core.request import Request

NON_FINITE = "the model's output held NaN or infinity for this request; its weights or its input may be damaged"


def finish_of(
    request: Request, eos_token_ids: Collection[int], max_model_len: int
) -> tuple[FinishReason | None, int | None]:
    """Whether the request ends with its last output token: (finish reason or None, stop reason).

    EOS and stop tokens count from the min_tokens-th output token on; EOS wins over an equal stop
    token and has no stop reason. Lengths always count.
    """
    params, token_id, num_outputs = request.params, request.output_token_ids[-1], len(request.output_token_ids)
    if num_outputs >= params.min_tokens:
        if token_id in eos_token_ids and not params.ignore_eos:
            return FinishReason.STOP, None
        if params.stop_token_ids and token_id in params.stop_token_ids:
            return FinishReason.STOP, token_id
    if params.max_tokens is not None and num_outputs >= params.max_tokens:
        return FinishReason.LENGTH, None
    if len(request.prompt_token_ids) + num_outputs >= max_model_len:
        return FinishReason.LENGTH, None
    return None, None
