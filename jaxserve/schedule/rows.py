"""What the device is told of one request: copies, so that a decision stays what it was."""

from jaxserve.core.request import Request
from jaxserve.schedule.output import PENDING_TOKEN, RowStart, ScheduledRow


def row_start(request: Request) -> RowStart:
    """The request enters its row with everything known so far."""
    assert request.row is not None
    return RowStart(
        row=request.row,
        request_id=request.request_id,
        params=request.params,
        seed=request.seed,
        prompt_token_ids=request.prompt_token_ids,
        output_token_ids=request.output_token_ids.copy(),
    )


def scheduled_row(request: Request, stop: int) -> ScheduledRow:
    """The request's tokens [num_reached_tokens, stop).

    Prompt log probabilities are asked for only where some of the chunk's were not delivered yet.
    """
    assert request.row is not None
    start, num_prompt, num_tokens = request.num_reached_tokens, len(request.prompt_token_ids), request.num_tokens
    num_prompt_logprobs = request.params.prompt_logprobs
    if num_prompt_logprobs is not None and min(stop, num_prompt - 1) <= max(start, request.num_prompt_logprobs_sent):
        num_prompt_logprobs = None
    return ScheduledRow(
        request_id=request.request_id,
        row=request.row,
        start=start,
        token_ids=request.tokens(start, stop) if start < num_tokens else [PENDING_TOKEN],
        page_ids=request.page_ids.copy(),
        samples=stop == num_tokens + request.num_pending_tokens,
        num_prompt_tokens=num_prompt,
        num_prompt_logprobs=num_prompt_logprobs,
    )
