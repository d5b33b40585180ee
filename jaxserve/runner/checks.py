"""The debug mode's checks of a packed step: JAX clamps or drops a bad index silently, so look before."""

from itertools import pairwise

import numpy as np

from jaxserve.batch.step_batch import PackedStep
from jaxserve.core.config import EngineConfig
from jaxserve.schedule.output import PENDING_TOKEN, SchedulerOutput


def check_step(step: PackedStep, output: SchedulerOutput, config: EngineConfig) -> None:
    """Raise AssertionError where a page, slot, token or row is out of range, shared or out of order."""
    num_pages, page_size = config.cache.num_pages, config.cache.page_size
    lengths = [len(row.token_ids) for row in output.rows]
    assert output.num_tokens == sum(lengths) <= step.bucket.num_tokens
    assert all(not (a > 1 and b == 1) for a, b in pairwise(lengths)), "single-token rows must come first"
    for row in output.rows:
        assert all(0 <= page < num_pages for page in row.page_ids), f"{row.request_id}: page out of range"
        assert len(set(row.page_ids)) == len(row.page_ids), f"{row.request_id}: one page twice in a table"
        assert row.start + len(row.token_ids) <= len(row.page_ids) * page_size, f"{row.request_id}: table too short"
        assert row.start + len(row.token_ids) <= config.scheduler.max_model_len
        is_pending = row.token_ids == [PENDING_TOKEN]
        assert is_pending or all(0 <= token < config.model.vocab_size for token in row.token_ids)
    slots = step["slots_T"][: output.num_tokens]
    assert ((slots >= 0) & (slots < num_pages * page_size)).all()
    assert len(np.unique(slots)) == len(slots), "two tokens of a step share a slot"
    rows = [row.row for row in output.rows]
    assert len(set(rows)) == len(rows) and all(0 <= row < config.scheduler.max_num_seqs for row in rows)
