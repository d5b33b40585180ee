"""`POST /v1/completions`: prompts as text or token ids, one or many, echoed and scored where asked."""

import time
from collections.abc import AsyncGenerator
from typing import Any

from jaxserve.core.outputs import CompletionOutput, RequestOutput
from server import sse
from server.context import ServerContext
from server.errors import ApiError
from server.generation import Job, Usage, engine_id, outputs_of, public_id, sampling_params
from server.logprobs import LegacyLogprobs, joined, prompt_logprobs
from server.protocol import CompletionBody

_KIND = "text_completion"


class Completions:
    """One completion request: its jobs, and the answers they make."""

    def __init__(self, context: ServerContext, body: CompletionBody) -> None:
        context.check_model(body.model)
        self._context = context
        self._body = body
        self._tokenizer = context.engine.tokenizer
        self._id = public_id("cmpl", body)
        self._created = int(time.time())
        # Scoring a prompt: OpenAI's clients say max_tokens 0, the engine must sample one token to end.
        self._scores_only = bool(body.echo) and body.max_tokens == 0 and body.max_completion_tokens is None
        self._jobs: list[Job] = []
        self._echoes: list[str] = []

    async def prepare(self) -> None:
        """Tokenize and check the prompts. Raises RequestError or ApiError."""
        body = self._body
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise ApiError(400, "best_of is not supported: leave it out or make it equal to n", param="best_of")
        if body.logprobs is not None and body.logprobs < 0:
            raise ApiError(400, f"logprobs is {body.logprobs}, it must be at least 0", param="logprobs")
        scored = body.logprobs if body.echo else None
        if scored is not None and body.prompt_logprobs is not None:
            scored = max(scored, body.prompt_logprobs)
        fixed: dict[str, Any] = {"logprobs": body.logprobs}
        if scored is not None:
            fixed["prompt_logprobs"] = scored
        if self._scores_only:
            fixed |= {"max_tokens": 1, "min_tokens": 0}
        prompts = _prompts(body.prompt, self._context.args.max_prompts)
        for index, prompt in enumerate(prompts):
            params = sampling_params(self._context, body, fixed)
            text, ids = await self._token_ids(prompt)
            # Here, so that no prompt runs where one is not valid.
            self._context.engine.inputs.process(ids, params)
            self._jobs.append(Job(index, engine_id(self._id, index), text, ids, params))
            self._echoes.append(self._echo(text, ids) if body.echo else "")

    async def _token_ids(self, prompt: Any) -> tuple[str | None, list[int]]:
        if not isinstance(prompt, str):
            return None, prompt
        encode = self._context.engine.inputs.encode
        adds_special = self._body.add_special_tokens is not False
        return prompt, await self._context.in_text_thread(len(prompt), lambda: encode(prompt, adds_special))

    def _echo(self, text: str | None, ids: list[int]) -> str:
        return text if text is not None else self._tokenizer.decode(ids, skip_special_tokens=False)

    def _writer(self) -> LegacyLogprobs:
        return LegacyLogprobs(self._tokenizer, self._body.skip_special_tokens is not False)

    async def answer(self) -> dict[str, Any]:
        """The whole answer at once."""
        usage = Usage(self._jobs, not self._scores_only)
        choices: list[dict[str, Any]] = []
        async for job, output in outputs_of(self._context, self._jobs, self._body):
            usage.note(job, output)
            choices += [self._whole_choice(job, output, completion) for completion in output.outputs]
        choices.sort(key=lambda choice: choice["index"])
        return {**self._head(), "choices": choices, "usage": usage.value()}

    def _head(self) -> dict[str, Any]:
        return {"id": self._id, "object": _KIND, "created": self._created, "model": self._context.model}

    def _whole_choice(self, job: Job, output: RequestOutput, completion: CompletionOutput) -> dict[str, Any]:
        writer = self._writer()
        choice = self._choice(job, completion, writer, self._opening(job, output, writer))
        if self._body.prompt_logprobs is not None and output.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs)
        return choice

    def _opening(self, job: Job, output: RequestOutput, writer: LegacyLogprobs) -> tuple[str, dict[str, Any] | None]:
        """What an echoed prompt puts before the output: its text, and its log probabilities if asked for."""
        if not self._body.echo:
            return "", None
        echo = self._echoes[job.index]
        if self._body.logprobs is None:
            return echo, None
        return echo, writer.prompt(job.token_ids, output.prompt_logprobs or [], echo)

    def _choice(
        self,
        job: Job,
        completion: CompletionOutput,
        writer: LegacyLogprobs,
        opening: tuple[str, dict[str, Any] | None] = ("", None),
    ) -> dict[str, Any]:
        echo, logprobs = opening
        if completion.logprobs is not None and not self._scores_only:
            generated = writer.generated(completion.token_ids, completion.logprobs)
            logprobs = joined(logprobs, generated) if logprobs is not None else generated
        choice: dict[str, Any] = {
            "index": job.index * job.params.n + completion.index,
            "text": echo if self._scores_only else echo + completion.text,
            "logprobs": logprobs,
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }
        if self._body.return_token_ids:
            choice["prompt_token_ids"] = job.token_ids
            choice["token_ids"] = completion.token_ids
        return choice

    async def stream(self) -> AsyncGenerator[bytes]:
        """The answer as server-sent events, a chunk for each sample's news."""
        body = self._body
        usage = Usage(self._jobs, not self._scores_only)
        frame = sse.ChunkFrame(self._head(), body.includes_usage)
        writers: dict[tuple[int, int], LegacyLogprobs] = {}
        waiting: dict[int, list[RequestOutput]] = {job.index: [] for job in self._jobs}
        scored: dict[int, RequestOutput] = {}
        needs_scores = bool(body.echo) and body.logprobs is not None
        async for job, output in outputs_of(self._context, self._jobs, body):
            waiting[job.index].append(output)
            if output.prompt_logprobs is not None:
                scored[job.index] = output
            # Samples of one prompt share its scores, which come with the first sample's output only.
            if needs_scores and job.index not in scored and not output.finished:
                continue
            ready, waiting[job.index] = waiting[job.index], []
            for news in ready:
                usage.note(job, news)
                for completion in news.outputs:
                    key = (job.index, completion.index)
                    opening: tuple[str, dict[str, Any] | None] = ("", None)
                    if key not in writers:
                        writers[key] = self._writer()
                        opening = self._opening(job, scored.get(job.index, news), writers[key])
                    counts = usage.value() if body.continuous_usage else None
                    yield frame.choice(self._choice(job, completion, writers[key], opening), counts)
        if body.includes_usage:
            yield frame.usage(usage.value())
        yield sse.DONE


def _prompts(prompt: Any, limit: int) -> list[Any]:
    """The request's prompts, each text or a list of token ids. Raises ApiError."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise ApiError(400, "prompt must be text, token ids, or a list of these; not empty", param="prompt")
    if not isinstance(prompt[0], str | list):
        return [prompt]
    if len(prompt) > limit:
        raise ApiError(400, f"prompt holds {len(prompt)} prompts, at most {limit} are allowed", param="prompt")
    if any(type(one) is not type(prompt[0]) for one in prompt):
        raise ApiError(400, "prompt must hold texts only or lists of token ids only", param="prompt")
    return prompt
