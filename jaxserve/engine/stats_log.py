"""One line of throughput and queue lengths for the log, every LOG_INTERVAL_S while there is anything to say."""

import time
from collections.abc import Callable

from jaxserve.core.outputs import EngineOutput
from jaxserve.engine.messages import SchedulerStats
from jaxserve.engine.step_figures import figures_between

LOG_INTERVAL_S = 10.0


class StatsLog:
    """Counts tokens between two lines. clock: monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since_s = clock()
        self._num_prompt_tokens = 0
        self._num_new_tokens = 0
        self._was_busy = False
        self._last = SchedulerStats()

    def count_prompt(self, num_tokens: int) -> None:
        self._num_prompt_tokens += num_tokens

    def count_outputs(self, outputs: list[EngineOutput]) -> None:
        self._num_new_tokens += sum(len(output.new_token_ids) for output in outputs)

    def line(self, stats: SchedulerStats, always: bool = False) -> str | None:
        """The line since the last one; None where nothing happened in two intervals (unless always)."""
        now_s = self._clock()
        elapsed_s = max(now_s - self._since_s, 1e-9)
        is_busy = bool(self._num_prompt_tokens or self._num_new_tokens or stats.num_running or stats.num_waiting)
        prompt_rate, new_rate = self._num_prompt_tokens / elapsed_s, self._num_new_tokens / elapsed_s
        self._since_s, self._num_prompt_tokens, self._num_new_tokens = now_s, 0, 0
        figures, self._last = figures_between(self._last, stats), stats
        was_busy, self._was_busy = self._was_busy, is_busy
        if not (is_busy or was_busy or always):
            return None
        return (
            f"prompt {prompt_rate:.1f} tokens/s, generation {new_rate:.1f} tokens/s, "
            f"running {stats.num_running}, waiting {stats.num_waiting}, "
            f"KV pages used {_percent(stats.num_used_pages, stats.num_pages)}, "
            f"prefix cache hits {_percent(stats.prefix_cache_hits, stats.prefix_cache_queries)}, "
            f"preemptions {stats.num_preemptions}" + ("" if figures is None else f", {figures}")
        )


def _percent(part: int, whole: int) -> str:
    return f"{100.0 * part / whole:.1f} %" if whole else "0.0 %"
