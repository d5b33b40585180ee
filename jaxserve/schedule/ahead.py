"""Which requests can be scheduled before the host has read the token that a step in flight samples for them."""

from jaxserve.core.request import Request


def num_left_tokens(request: Request, max_model_len: int) -> int:
    """Tokens that the next step may compute of a running request: known ones and the pending one.

    0 where the pending token is sure to be the last, by max_tokens or max_model_len.
    """
    params, num_pending = request.params, request.num_pending_tokens
    num_outputs = len(request.output_token_ids) + num_pending
    if num_pending and params.max_tokens is not None and num_outputs >= params.max_tokens:
        return 0
    num_tokens = request.num_tokens + num_pending
    if num_pending and num_tokens >= max_model_len:
        return 0
    return num_tokens - request.num_reached_tokens


def must_see_token(request: Request) -> bool:
    """Whether the next step's biases depend on the token that is pending, so that the host must read it first.

    The device counts tokens for penalties by itself; `RowSampling.update` sets biases, on the host. They change
    when the min_tokens-th output lifts the ban on stops, and after any token where bad words are longer than one.
    """
    if not request.num_pending_tokens:
        return False
    params = request.params
    if params.min_tokens and len(request.output_token_ids) + request.num_pending_tokens == params.min_tokens:
        return True
    return any(len(word) > 1 for word in params.bad_words_token_ids or ())
