"""From a step's arrays on the host to one `RowResult` a row."""

from itertools import accumulate

from jaxtyping import Array

from jaxserve.core.outputs import TokenLogprobs
from jaxserve.core.step_result import RowResult
from jaxserve.runner.batch_builder import Row
from jaxserve.runner.step import StepOutput
from jaxserve.schedule.output import ScheduledRow


def read_results(rows: list[ScheduledRow], mirrors: list[Row], host: StepOutput) -> list[RowResult]:
    """One result a row, in order. host: numpy arrays, None where nobody asked; mirrors: what the host knows of each."""
    token_ids = host.sampled.token_ids_B.tolist()
    firsts = accumulate((len(row.token_ids) for row in rows), initial=0)
    return [
        _result(i, first, row, mirror, token_ids[i], host)
        for i, (first, row, mirror) in enumerate(zip(firsts, rows, mirrors, strict=False))
    ]


def _result(index: int, first: int, row: ScheduledRow, mirror: Row, token_id: int, host: StepOutput) -> RowResult:
    """first: the row's first token in the step."""
    result = RowResult(row.request_id, None)
    if row.num_prompt_logprobs is not None:
        result.prompt_logprobs = _prompt_logprobs(first, row, mirror, row.num_prompt_logprobs, host)
    if not row.samples:
        return result
    result.is_finite = token_id >= 0
    result.token_id = token_id if result.is_finite else None
    wanted, sampled = mirror.start.params.logprobs, host.sampled
    if wanted is not None and result.is_finite:
        top = (sampled.top_ids_BK[index], sampled.top_logprobs_BK[index])
        result.logprobs = _entry(token_id, sampled.logprob_B[index], sampled.rank_B[index], top, wanted)
    return result


def _prompt_logprobs(first: int, row: ScheduledRow, mirror: Row, wanted: int, host: StepOutput) -> list[TokenLogprobs]:
    """Entries for the prompt positions that this chunk's positions predict."""
    following = mirror.start.prompt_token_ids[row.start + 1 : row.start + 1 + len(row.token_ids)]
    return [
        _entry(
            token_id,
            host.prompt.logprob_T[first + i],
            host.prompt.rank_T[first + i],
            (host.prompt.top_ids_TK[first + i], host.prompt.top_logprobs_TK[first + i]),
            wanted,
        )
        for i, token_id in enumerate(following)
    ]


def _entry(token_id: int, logprob: Array, rank: Array, top: tuple[Array, Array], wanted: int) -> TokenLogprobs:
    ids, logprobs = top
    count = len(ids) if wanted < 0 else min(wanted, len(ids))
    return TokenLogprobs(token_id, float(logprob), int(rank), ids[:count].tolist(), logprobs[:count].tolist())
