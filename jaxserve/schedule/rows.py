"""What the device is told of one request: copies, so that a decision stays what it was."""

from jaxserve.core.request import Request
from jaxserve.schedule.output import RowStart, ScheduledRow


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
    """The request's tokens [num_computed_tokens, stop).

    Prompt log probabilities are asked for only where some of the chunk's were not delivered yet.
    """
    assert request.row is not None
    num_unsent = min(stop, request.num_prompt_tokens - 1) - request.num_prompt_logprobs_sent
    return ScheduledRow(
        request_id=request.request_id,
        row=request.row,
        start=request.num_computed_tokens,
        token_ids=request.tokens(request.num_computed_tokens, stop),
        page_ids=request.page_ids.copy(),
        samples=stop == request.num_tokens,
        num_prompt_tokens=request.num_prompt_tokens,
        num_prompt_logprobs=request.params.prompt_logprobs if num_unsent > 0 else None,
    )
