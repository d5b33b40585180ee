"""`POST /v1/chat/completions`: messages through the model's template, answers as messages."""

import time
from collections.abc import AsyncGenerator
from typing import Any

from jaxserve.core.outputs import CompletionOutput
from server import sse
from server.context import ServerContext
from server.errors import ApiError
from server.generation import Job, Usage, engine_id, outputs_of, public_id, sampling_params
from server.logprobs import chat_logprobs, prompt_logprobs
from server.protocol import ChatBody, TokenizeBody

_ROLE = "assistant"


async def render_chat(context: ServerContext, body: ChatBody | TokenizeBody) -> str:
    """The prompt text of a chat. Raises RequestError or ApiError."""
    template, max_chars = context.template, context.max_prompt_chars
    messages = body.messages or []
    continues = bool(body.continue_final_message)
    # Continuing the last message means not to open another: clients need say only one of the two.
    opens = body.add_generation_prompt if body.add_generation_prompt is not None else not continues

    def render() -> str:
        return template.render(
            messages,
            add_generation_prompt=opens,
            continue_final_message=continues,
            chat_template_kwargs=body.chat_template_kwargs,
            max_chars=max_chars,
        )

    return await context.in_template_thread(render)


class ChatCompletions:
    """One chat request: its one prompt, and the answers it makes."""

    def __init__(self, context: ServerContext, body: ChatBody) -> None:
        context.check_model(body.model)
        self._context = context
        self._body = body
        self._tokenizer = context.engine.tokenizer
        self._id = public_id("chatcmpl", body)
        self._created = int(time.time())
        self._num_top = body.top_logprobs or 0
        self._jobs: list[Job] = []

    async def prepare(self) -> None:
        """Render and tokenize. Raises RequestError or ApiError."""
        body, context = self._body, self._context
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")
        if self._num_top < 0:
            raise ApiError(400, f"top_logprobs is {self._num_top}, it must be at least 0", param="top_logprobs")
        fixed = {"logprobs": self._num_top if body.logprobs else None}
        params = sampling_params(context, body, fixed, max_tokens=None)
        text = await render_chat(context, body)
        encode = context.engine.inputs.encode
        # The template has written the special tokens already.
        adds_special = bool(body.add_special_tokens)
        ids = await context.in_text_thread(len(text), lambda: encode(text, adds_special))
        self._jobs = [Job(0, engine_id(self._id, 0), text, ids, params)]

    @property
    def _echo(self) -> str:
        """The last message, where the answer goes on from it and shall contain it."""
        last = self._body.messages[-1]
        content = last.get("content")
        return content if self._body.echo and last.get("role") == _ROLE and isinstance(content, str) else ""

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._context.model}

    async def answer(self) -> dict[str, Any]:
        """The whole answer at once."""
        usage = Usage(self._jobs)
        answer = self._head("chat.completion")
        async for job, output in outputs_of(self._context, self._jobs, self._body):
            usage.note(job, output)
            answer["choices"] = [self._whole_choice(completion) for completion in output.outputs]
            answer["usage"] = usage.value()
            if output.prompt_logprobs is not None:
                answer["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs)
            if self._body.return_token_ids:
                answer["prompt_token_ids"] = job.token_ids
        return answer

    def _whole_choice(self, completion: CompletionOutput) -> dict[str, Any]:
        message = {"role": _ROLE, "content": self._echo + completion.text, "refusal": None}
        return {"index": completion.index, "message": message, **self._rest(completion)}

    def _rest(self, completion: CompletionOutput) -> dict[str, Any]:
        """What whole choices and chunks have in common."""
        rest: dict[str, Any] = {
            "logprobs": None,
            "finish_reason": completion.finish_reason,
            "stop_reason": completion.stop_reason,
        }
        if completion.logprobs is not None:
            rest["logprobs"] = chat_logprobs(self._tokenizer, completion.token_ids, completion.logprobs, self._num_top)
        if self._body.return_token_ids:
            rest["token_ids"] = completion.token_ids
        return rest

    async def stream(self) -> AsyncGenerator[bytes]:
        """The answer as server-sent events: for each sample its role first, then its news."""
        body = self._body
        usage = Usage(self._jobs)
        frame = sse.ChunkFrame(self._head("chat.completion.chunk"), body.includes_usage)
        opened: set[int] = set()
        async for job, output in outputs_of(self._context, self._jobs, body):
            usage.note(job, output)
            counts = usage.value() if body.continuous_usage else None
            for completion in output.outputs:
                if completion.index not in opened:
                    opened.add(completion.index)
                    yield frame.choice(self._opening(job, completion.index), counts)
                chunk = {"index": completion.index, "delta": {"content": completion.text}, **self._rest(completion)}
                yield frame.choice(chunk, counts)
        if body.includes_usage:
            yield frame.usage(usage.value())
        yield sse.DONE

    def _opening(self, job: Job, index: int) -> dict[str, Any]:
        delta = {"role": _ROLE, "content": self._echo}
        opening: dict[str, Any] = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        if self._body.return_token_ids:
            opening["prompt_token_ids"] = job.token_ids
        return opening
