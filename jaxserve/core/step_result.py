"""What one step gives back to the host, per row that was computed."""

from dataclasses import dataclass

from jaxserve.core.outputs import TokenLogprobs


@dataclass(slots=True)
class RowResult:
    """token_id: the sampled token, None where the row did not sample (a prompt chunk) or is not finite.

    logprobs: of the sampled token, where the request asked; prompt_logprobs: entries for the
    prompt positions p+1 predicted by this chunk's positions p (only those inside the prompt).
    is_finite: False where the row's logits held a NaN or +inf: the request must end in an error.
    """

    request_id: str
    token_id: int | None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    is_finite: bool = True
