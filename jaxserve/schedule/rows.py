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
    start, num_prompt = request.num_reached_tokens, request.num_prompt_tokens
    has_unsent = min(stop, num_prompt - 1) > max(start, request.num_prompt_logprobs_sent)
    return ScheduledRow(
        request_id=request.request_id,
        row=request.row,
        start=start,
        token_ids=request.tokens(start, stop) if start < request.num_tokens else [PENDING_TOKEN],
        page_ids=request.page_ids.copy(),
        samples=stop == request.num_tokens + request.num_pending_tokens,
        num_prompt_tokens=num_prompt,
        num_prompt_logprobs=request.params.prompt_logprobs if has_unsent else None,
    )
