"""Which requests can be scheduled before the host has read the token that a step in flight samples for them."""

from jaxserve.core.request import Request


def num_left_tokens(request: Request, max_model_len: int) -> int:
    """Tokens that the next step may compute of a running request: known ones and the pending one.

    0 where the pending token is sure to be the last, by max_tokens or max_model_len.
    """
    num_tokens, num_pending = request.num_tokens, request.num_pending_tokens
    if num_pending:
        num_tokens += num_pending
        max_tokens = request.params.max_tokens
        num_outputs = num_tokens - len(request.prompt_token_ids)
        if num_tokens >= max_model_len or (max_tokens is not None and num_outputs >= max_tokens):
            return 0
    return num_tokens - request.num_computed_tokens - request.num_scheduled_tokens


def may_have_to_see(request: Request) -> bool:
    """Whether `must_see_token` can ever be true of this request."""
    return request.params.min_tokens > 0 or _has_long_bad_words(request)


def must_see_token(request: Request) -> bool:
    """Whether the next step's biases depend on the token that is pending, so that the host must read it first.

    The device counts tokens for penalties by itself; `RowSampling.update` sets biases, on the host. They change
    when the min_tokens-th output lifts the ban on stops, and after any token where bad words are longer than one.
    """
    if not request.num_pending_tokens:
        return False
    num_outputs = len(request.output_token_ids) + request.num_pending_tokens
    return num_outputs == request.params.min_tokens or _has_long_bad_words(request)


def _has_long_bad_words(request: Request) -> bool:
    return any(len(word) > 1 for word in request.params.bad_words_token_ids or ())
