"""`LLM`: the engine in your own program, without a server: lists in, lists out, or tokens as they come."""

import itertools
import logging
import signal
import threading
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType, TracebackType
from typing import Any, Self

import msgspec
from tqdm import tqdm

from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import EngineDead, RequestError
from jaxserve.core.outputs import RequestOutput
from jaxserve.core.params import RequestOutputKind, SamplingParams
from jaxserve.engine.client import EngineClient, InlineClient, Progress
from jaxserve.engine.default_sampling import default_sampling
from jaxserve.engine.fleet_client import process_client
from jaxserve.engine.input_processor import InputProcessor, Prompt
from jaxserve.engine.messages import AbortRequests, Call, CallResult, Outputs, SchedulerStats
from jaxserve.engine.output_processor import OutputProcessor
from jaxserve.engine.output_queue import PendingOutput
from jaxserve.text.chat import ChatTemplate
from jaxserve.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Params = SamplingParams | Sequence[SamplingParams] | None


@dataclass(slots=True)
class _Prepared:
    """A request that has passed every check and has not yet started."""

    text: str | None
    token_ids: list[int]
    params: SamplingParams
    priority: int


class LLM:
    """A model ready to generate. Not thread-safe: one thread uses it.

    model: checkpoint directory or hub id, the bundled demo model if empty; engine_args: the fields of
    EngineArgs. The engine runs in this thread; engine_process=True gives it a process of its own,
    data_parallel_size=N makes N of them that share the work.
    progress: gets a line for each thing the start does.

    A request that fails inside the engine has finish_reason "error" and its message in `RequestOutput.error`;
    the others go on. Raises ConfigError or CheckpointError where the engine cannot start.
    """

    def __init__(
        self, model: str = "", *, tokenizer: str | None = None, progress: Progress = logger.info, **engine_args: Any
    ) -> None:
        given: dict[str, Any] = {"engine_process": False, **engine_args}
        self.args = EngineArgs(model=model, tokenizer=tokenizer, **given)
        in_process = self.args.engine_process or self.args.data_parallel_size != 1
        self._client: EngineClient = process_client(self.args) if in_process else InlineClient(self.args)
        self.info = self._client.start(progress)
        self._finalizer = weakref.finalize(self, self._client.close)
        try:
            self._tokenizer = Tokenizer.load(self.args.tokenizer or self.info.model_path, self.args.revision)
            self._template = ChatTemplate.load(self._tokenizer, self.args.chat_template)
            self._default_sampling = default_sampling(self.info.model_path, self.args.generation_config)
        except BaseException:
            self._finalizer()
            raise
        if self._default_sampling:
            logger.info("sampling defaults from generation_config.json: %s", self._default_sampling)
        self._inputs = InputProcessor(self._tokenizer, self.info)
        self._outputs = OutputProcessor(self._tokenizer)
        self._pending: dict[str, PendingOutput] = {}
        self._answers: dict[int, CallResult] = {}
        self._ids = itertools.count()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete every prompt; the outputs are in the prompts' order.

        prompts: one or a list of: text, token ids, {"prompt": text}, {"prompt_token_ids": ids}.
        sampling_params: one for all, or one a prompt; the model's defaults if None.
        priority: one number a prompt, lower runs first (needs scheduling_policy="priority").
        Raises RequestError before any work starts if one of the prompts or parameters is not valid.
        """
        prepared = self._prepare(_as_list(prompts), sampling_params, priority)
        return self._run_all(prepared, use_tqdm)

    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: Params = None,
        use_tqdm: bool = True,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Complete one conversation (a list of messages) or several (a list of such lists).

        A message is {"role": ..., "content": ...}. Raises RequestError as `generate` does, also where
        the chat template refuses a conversation or the model has none.
        """
        is_one = bool(messages) and isinstance(messages[0], Mapping)
        conversations = [messages] if is_one else list(messages)
        texts = [
            self.render_chat(one, chat_template, add_generation_prompt, continue_final_message, chat_template_kwargs)
            for one in conversations
        ]
        prepared = self._prepare(texts, sampling_params, None, add_special_tokens=False)
        return self._run_all(prepared, use_tqdm)

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        add_special_tokens: bool = True,
    ) -> Generator[RequestOutput]:
        """Outputs as the tokens come, those of several prompts as they happen to come.

        request_id is the prompt's index in the list. Each output holds everything so far, or only what is
        new with output_kind=RequestOutputKind.DELTA. Prompts are checked at once; the work starts with the
        first output asked for, and leaving the loop early aborts it.
        add_special_tokens: False for text that holds them already, as `render_chat` returns.
        """
        prepared = self._prepare(_as_list(prompts), sampling_params, None, add_special_tokens)
        return self._stream(prepared)

    def render_chat(
        self,
        messages: Sequence[Any],
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The text that the chat template makes of one conversation; special tokens are in it."""
        template = self._template if chat_template is None else ChatTemplate.load(self._tokenizer, chat_template)
        return template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template_kwargs=chat_template_kwargs,
        )

    def get_tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What a request without parameters runs with: vLLM's defaults, overlaid with generation_config.json."""
        return SamplingParams(**self._default_sampling)

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prompt pages; False where running requests still use some."""
        return bool(self._call("reset_prefix_cache"))

    def stats(self) -> SchedulerStats:
        """Gauges of now and counters since the start."""
        return msgspec.convert(self._call("stats"), SchedulerStats)

    def get_metrics(self) -> dict[str, float]:
        """`stats` as names and numbers, of all replicas together."""
        numbers: dict[str, Any] = msgspec.to_builtins(self.stats())
        del numbers["replicas"]
        return numbers

    def shutdown(self) -> None:
        """Free the model, the cache and the device's memory. Twice does nothing; `del` does the same."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()

    def _prepare(
        self, prompts: Sequence[Prompt], params: Params, priority: Sequence[int] | None, add_special_tokens: bool = True
    ) -> list[_Prepared]:
        """Check everything. The prompt at fault is named by its index where there are several."""
        if params is None or isinstance(params, SamplingParams):
            one = params or self.get_default_sampling_params()
            each: Sequence[SamplingParams] = [one] * len(prompts)
        else:
            each = params
        priorities = [0] * len(prompts) if priority is None else list(priority)
        for name, values in (("sampling_params", each), ("priority", priorities)):
            if len(values) != len(prompts):
                raise RequestError(f"{name} has {len(values)} entries for {len(prompts)} prompts", param=name)
        prepared: list[_Prepared] = []
        for index, (prompt, one) in enumerate(zip(prompts, each, strict=True)):
            try:
                processed = self._inputs.process(prompt, one, add_special_tokens=add_special_tokens)
            except RequestError as error:
                if len(prompts) == 1:
                    raise
                raise RequestError(f"prompts[{index}]: {error}", param=error.param, code=error.code) from None
            prepared.append(_Prepared(*processed, priorities[index]))
        return prepared

    def _run_all(self, prepared: list[_Prepared], use_tqdm: bool) -> list[RequestOutput]:
        for request in prepared:
            request.params = replace(request.params, output_kind=RequestOutputKind.FINAL_ONLY)
        outputs: dict[str, RequestOutput] = {}
        with tqdm(total=len(prepared), desc="Requests", disable=not use_tqdm, dynamic_ncols=True) as bar:
            for output in self._stream(prepared):
                outputs[output.request_id] = output
                bar.update()
        return [outputs[str(index)] for index in range(len(prepared))]

    def _stream(self, prepared: list[_Prepared]) -> Generator[RequestOutput]:
        running: dict[str, str] = {}  # request id to the index its outputs carry
        try:
            for index, request in enumerate(prepared):
                running[self._add(request)] = str(index)
            while running:
                news = [request_id for request_id in running if self._pending[request_id].waits]
                if not news:
                    self._pump()
                for request_id in news:
                    output = self._pending[request_id].take()
                    assert output is not None, "it waits, and nobody else takes it"
                    shown = replace(output, request_id=running[request_id])
                    if output.finished:
                        del running[request_id], self._pending[request_id]
                    yield shown
        finally:
            self._abort(list(running))

    def _add(self, request: _Prepared) -> str:
        request_id = f"llm-{next(self._ids)}"
        self._pending[request_id] = PendingOutput(request.params.output_kind)
        messages = self._outputs.add(
            request_id, request.text, request.token_ids, request.params, priority=request.priority
        )
        for message in messages:
            self._client.send(message)
        return request_id

    def _pump(self) -> None:
        """Take one message of the engine; an inline engine makes one step for it. Ctrl-C waits for the step's end."""
        try:
            message = _uninterrupted(self._client.receive)
        except EngineDead:
            self._outputs = OutputProcessor(self._tokenizer)  # nobody is left to answer or to be told of aborts
            raise
        if isinstance(message, CallResult):
            self._answers[message.call_id] = message
        if isinstance(message, Outputs):
            processed = self._outputs.process(message.outputs)
            for output in processed.request_outputs:
                if output.request_id in self._pending:
                    self._pending[output.request_id].put(output)
            if processed.aborts:
                self._client.send(AbortRequests(processed.aborts))

    def _abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._pending.pop(request_id, None)
        engine_ids, _ = self._outputs.abort(request_ids)
        if engine_ids and self._finalizer.alive:
            self._client.send(AbortRequests(engine_ids))

    def _call(self, method: str) -> Any:
        call_id = next(self._ids)
        self._client.send(Call(call_id, method))
        while call_id not in self._answers:
            self._pump()
        return self._answers.pop(call_id).value


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several, as a list. A list of whole numbers is one prompt."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if prompts and all(isinstance(part, int) for part in prompts):
        return [prompts]  # pyright: ignore[reportReturnType]
    return list(prompts)  # pyright: ignore[reportArgumentType, reportReturnType]


def _uninterrupted[T](act: Callable[[], T]) -> T:
    """Call, and raise the KeyboardInterrupt of a Ctrl-C during it afterwards; the second Ctrl-C does not wait.

    A step cut in two would leave scheduler and device with different truths.
    """
    if threading.current_thread() is not threading.main_thread():
        return act()
    interrupts: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        if len(interrupts) > 1:
            raise KeyboardInterrupt

    if before is not signal.default_int_handler:
        return act()
    signal.signal(signal.SIGINT, note)
    try:
        result = act()
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupts:
        raise KeyboardInterrupt
    return result
