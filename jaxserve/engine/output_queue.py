"""`PendingOutput`: what a consumer has not yet taken of one request, merged so that a slow one costs no memory."""

import asyncio
from dataclasses import replace

from jaxserve.core.errors import EngineDead, EngineError, JaxserveError, QueueFull, ReplicaLost
from jaxserve.core.outputs import CompletionOutput, RequestOutput
from jaxserve.core.params import RequestOutputKind


def error_of(output: RequestOutput) -> JaxserveError | None:
    """The exception that a failed request's last output stands for; None for any other output."""
    if output.error is None:
        return None
    kinds: dict[str | None, type[JaxserveError]] = {
        "QueueFull": QueueFull,
        "EngineDead": EngineDead,
        "ReplicaLost": ReplicaLost,
    }
    return kinds.get(output.error_kind, EngineError)(output.error)


def merge_deltas(earlier: RequestOutput, later: RequestOutput) -> RequestOutput:
    """One DELTA output that says what two in a row said."""
    by_index = {completion.index: completion for completion in earlier.outputs}
    for completion in later.outputs:
        before = by_index.get(completion.index)
        by_index[completion.index] = completion if before is None else _joined(before, completion)
    outputs = [by_index[index] for index in sorted(by_index)]
    return replace(later, outputs=outputs, prompt_logprobs=later.prompt_logprobs or earlier.prompt_logprobs)


def _joined(before: CompletionOutput, after: CompletionOutput) -> CompletionOutput:
    logprobs = after.logprobs if before.logprobs is None else before.logprobs + (after.logprobs or [])
    return replace(
        after, text=before.text + after.text, token_ids=before.token_ids + after.token_ids, logprobs=logprobs
    )


class PendingOutput:
    """At most one output waits: DELTAs are joined, of the other kinds the newest stands for all.

    is_finished: the last output has been put in. Owned by one thread or event loop.
    """

    def __init__(self, kind: RequestOutputKind) -> None:
        self.is_finished = False
        self._joins = kind is RequestOutputKind.DELTA
        self._output: RequestOutput | None = None
        self._news: asyncio.Event | None = None

    @property
    def waits(self) -> bool:
        """Whether an output is there to be taken."""
        return self._output is not None

    def put(self, output: RequestOutput) -> None:
        joins = self._joins and self._output is not None
        self._output = merge_deltas(self._output, output) if joins and self._output is not None else output
        self.is_finished = output.finished
        if self._news is not None:
            self._news.set()

    def take(self) -> RequestOutput | None:
        """What waits, if anything."""
        output, self._output = self._output, None
        if self._news is not None:
            self._news.clear()
        return output

    async def get(self) -> RequestOutput:
        """The next output, waiting for it; one consumer at a time."""
        if self._news is None:
            self._news = asyncio.Event()
        while (output := self.take()) is None:
            await self._news.wait()
        return output
