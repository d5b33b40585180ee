"""`FleetClient`: several engines behind one `EngineClient`, each in a process of its own, with one queue before them.

A request waits here until `Placement` has room for it. A replica that ends is started again (`RestartPolicy`). Its
requests are placed again where no token of theirs has left this client, and end with ReplicaLost where one has: a
second run might not repeat it. A request is placed at most MAX_PLACEMENTS times, as it may be what ended the replica.
"""

import asyncio
import contextlib
import logging
import os
import queue
import random
import time
from collections import deque
from dataclasses import dataclass, replace

import msgspec
import zmq

from jaxserve.core.config import EngineArgs, SchedulerConfig
from jaxserve.core.errors import ConfigError, EngineDead, JaxserveError, QueueFull
from jaxserve.core.outputs import EngineOutput, FinishReason
from jaxserve.core.request import Request
from jaxserve.engine.client import AttachableClient, OnMessage, Progress, silent
from jaxserve.engine.fleet_stats import Gathering, merged_info, merged_stats
from jaxserve.engine.messages import (
    AbortRequests,
    AddRequest,
    Call,
    CallResult,
    EngineFailed,
    EngineInfo,
    FromEngine,
    Outputs,
    ReplicaStats,
    SchedulerStats,
    Shutdown,
    ToEngine,
)
from jaxserve.engine.placement import Capacity, Placement, Ticket
from jaxserve.engine.process_client import DEATH_CHECK_S, ProcessClient
from jaxserve.engine.replica import Replica, ReplicaNews
from jaxserve.engine.replica_devices import environments, visible_gpus
from jaxserve.schedule.admission import check_queue
from jaxserve.schedule.queue import WaitingQueue

logger = logging.getLogger(__name__)

MAX_PLACEMENTS = 2


def process_client(args: EngineArgs) -> AttachableClient:
    """A client of one engine in a process of its own, or of data_parallel_size of them. Raises ConfigError."""
    if args.data_parallel_size < 1:
        raise ConfigError(f"data_parallel_size={args.data_parallel_size} must be at least 1, the number of engines.")
    return ProcessClient(args) if args.data_parallel_size == 1 else FleetClient(args)


@dataclass(slots=True, eq=False)
class _Stream:
    """One request on its way. has_news: something of it was handed on; is_ended: so was its last output."""

    message: AddRequest
    request: Request
    placed_id: str = ""
    ticket: Ticket | None = None
    has_news: bool = False
    is_ended: bool = False
    num_placements: int = 0


class FleetClient:
    """Used from one thread, as every EngineClient. Raises ConfigError where the devices do not suffice."""

    info: EngineInfo

    def __init__(self, args: EngineArgs) -> None:
        self._args = args
        one = replace(args, data_parallel_size=1, max_num_queued_reqs=None, max_num_queued_tokens=None)
        self._news: queue.SimpleQueue[ReplicaNews] = queue.SimpleQueue()
        slices = environments(args, visible_gpus(os.environ))
        self._replicas = [Replica(index, one, slices[index], self._post) for index in range(args.data_parallel_size)]
        self._seeds = random.Random(args.seed)  # drawn here, or every replica would draw the same
        self._queue = WaitingQueue(args.scheduling_policy)
        self._streams: dict[str, _Stream] = {}  # by the id that the front end knows; until their last output
        self._placed: dict[str, _Stream] = {}  # by the id that a replica knows; until it is done with them
        self._num_added = self._num_placed = 0
        self._gatherings: dict[int, Gathering] = {}
        self._inbox: deque[FromEngine] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_message: OnMessage | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._last_words: str | None = None

    def start(self, progress: Progress = silent) -> EngineInfo:
        """The first replica alone, as the others then find its programs compiled; then all others at once."""
        try:
            infos = self._bring_up(self._replicas[:1], progress)
            infos += self._bring_up(self._replicas[1:], progress)
        except BaseException:
            self.close()
            raise
        self.info = merged_info(infos)
        first = infos[0]
        self._limits = SchedulerConfig(
            first.max_num_seqs,
            first.max_num_batched_tokens,
            self.info.max_model_len,
            max_num_queued_reqs=self._args.max_num_queued_reqs,
            max_num_queued_tokens=self._args.max_num_queued_tokens,
        )
        self._placement = Placement(first.page_size if self._args.enable_prefix_caching else None)
        for replica, info in zip(self._replicas, infos, strict=True):
            self._placement.open(replica.index, _capacity(info))
        return self.info

    def send(self, message: ToEngine) -> None:
        if self._last_words is not None:
            raise EngineDead(self._last_words)
        match message:
            case AddRequest():
                self._add(message)
            case AbortRequests(request_ids=request_ids):
                self._abort(request_ids)
            case Call():
                self._ask(message)
            case Shutdown():
                self.close()
        if self._loop is not None:
            # Sending may have swallowed the signal that messages have arrived, and some answers are there at once.
            self._loop.call_soon(self._drain)

    def receive(self) -> FromEngine:
        self._collect()
        while not self._inbox:
            if self._last_words is not None:
                raise EngineDead(self._last_words)
            poller = zmq.Poller()
            for client in self._clients():
                poller.register(client.socket, zmq.POLLIN)
            poller.poll(int(DEATH_CHECK_S * 1000))
            self._collect()
        message = self._inbox.popleft()
        if isinstance(message, EngineFailed):
            raise EngineDead(message.message)
        return message

    def attach(self, loop: asyncio.AbstractEventLoop, on_message: OnMessage) -> None:
        self._detach()
        self._loop, self._on_message = loop, on_message
        for client in self._clients():
            loop.add_reader(client.descriptor, self._drain)
        loop.call_soon(self._tick)

    def close(self) -> None:
        self._detach()
        if self._last_words is None:
            self._last_words = "the engines are shut down"
        for replica in self._replicas:
            replica.stop_starting()
            if replica.client is not None:  # each is told before the first is waited for
                with contextlib.suppress(EngineDead):
                    replica.client.send(Shutdown())
        for replica in self._replicas:
            replica.close()
        while not self._news.empty():
            news = self._news.get()
            if isinstance(news.what, ProcessClient):
                news.what.close()

    def _bring_up(self, replicas: list[Replica], progress: Progress) -> list[EngineInfo]:
        """Start these at the same time. Raises what keeps one of them from it."""
        for replica in replicas:
            replica.begin()
        infos: dict[int, EngineInfo] = {}
        while len(infos) < len(replicas):
            try:  # a wait that Ctrl-C can end
                news = self._news.get(timeout=DEATH_CHECK_S)
            except queue.Empty:
                continue
            match news.what:
                case str(text):
                    progress(f"replica {news.index}: {text}")
                case ProcessClient() as client:
                    self._replicas[news.index].client = client
                    self._replicas[news.index].is_starting = False
                    infos[news.index] = client.info
                case JaxserveError() as error:
                    raise type(error)(f"replica {news.index} of {self._described()}: {error}") from None
        return [infos[replica.index] for replica in replicas]

    def _described(self) -> str:
        sizes = (self._args.data_parallel_size, self._args.tensor_parallel_size)
        return "data_parallel_size={}, tensor_parallel_size={}".format(*sizes)

    def _clients(self) -> list[ProcessClient]:
        return [replica.client for replica in self._replicas if replica.client is not None]

    def _add(self, message: AddRequest) -> None:
        self._num_added += 1
        request = Request(
            message.request_id,
            message.prompt_token_ids,
            message.params,
            arrival_time_s=message.arrival_time_s,
            priority=message.priority,
            cache_salt=message.cache_salt,
            arrival_order=self._num_added,
        )
        if message.params.seed is None:
            message.params = replace(message.params, seed=_signed(self._seeds.getrandbits(64)))
        num_free_rows = self._placement.num_rows - self._placement.num_requests
        try:
            check_queue(request, self._queue, num_free_rows, self._limits, time.monotonic())
        except QueueFull as error:
            refused = EngineOutput(message.request_id, finish_reason=FinishReason.ERROR, error=str(error))
            refused.error_kind = "QueueFull"
            self._inbox.append(Outputs([refused]))
            return
        self._streams[message.request_id] = _Stream(message, request)
        self._queue.push(request)
        self._place_waiting()

    def _place_waiting(self) -> None:
        """Give the replicas what they have room for, in the queue's order."""
        while self._queue and (ticket := self._placement.place(self._queue.peek())) is not None:
            stream = self._streams[self._queue.pop().request_id]
            stream.ticket = ticket
            stream.num_placements += 1
            self._num_placed += 1
            # An id is used once: what a replica still says of an aborted request cannot be taken for a later one's.
            stream.placed_id = f"{stream.message.request_id}@{self._num_placed}"
            self._placed[stream.placed_id] = stream
            self._tell(ticket.replica, msgspec.structs.replace(stream.message, request_id=stream.placed_id))

    def _tell(self, index: int, message: ToEngine) -> None:
        client = self._replicas[index].client
        if client is not None:
            with contextlib.suppress(EngineDead):  # its death will be noticed, and then what it was given is seen to
                client.send(message)

    def _abort(self, request_ids: list[str]) -> None:
        """Answered at once; a replica's load counts what it runs until it has stopped."""
        streams = [self._streams.pop(one) for one in dict.fromkeys(request_ids) if one in self._streams]
        by_replica: dict[int, list[str]] = {}
        for stream in streams:
            stream.is_ended = True
            if stream.ticket is None:
                self._queue.remove(stream.request.request_id)
            else:
                by_replica.setdefault(stream.ticket.replica, []).append(stream.placed_id)
        for index, placed_ids in by_replica.items():
            self._tell(index, AbortRequests(placed_ids))
        if streams:
            ends = [EngineOutput(one.request.request_id, finish_reason=FinishReason.ABORT) for one in streams]
            self._inbox.append(Outputs(ends, self._stats()))

    def _ask(self, call: Call) -> None:
        """Ask every replica that is up; the answer comes when all have answered or ended."""
        up = {replica.index for replica in self._replicas if replica.client is not None}
        self._gatherings[call.call_id] = Gathering(call.method, up)
        for index in sorted(up):
            self._tell(index, call)
        self._finish_gathering(call.call_id)

    def _finish_gathering(self, call_id: int) -> None:
        gathering = self._gatherings[call_id]
        if gathering.awaited:
            return
        del self._gatherings[call_id]
        if gathering.method == "reset_prefix_cache":
            self._placement.forget_pages()
        if gathering.error is not None:
            self._inbox.append(CallResult(call_id, error=gathering.error))
        elif gathering.method == "stats":
            self._inbox.append(CallResult(call_id, msgspec.to_builtins(self._stats())))
        elif gathering.values:
            self._inbox.append(CallResult(call_id, gathering.value()))
        else:
            self._inbox.append(CallResult(call_id, error="no replica is up"))

    def _collect(self) -> None:
        """Take in whatever the replicas have sent, those that start included."""
        for replica in self._replicas:
            client = replica.client
            for message in client.arrived() if client is not None else ():
                self._hear(replica, message)
        with contextlib.suppress(queue.Empty):
            while self._last_words is None:
                self._welcome(self._news.get_nowait())

    def _hear(self, replica: Replica, message: FromEngine) -> None:
        match message:
            case Outputs(outputs=outputs, stats=stats):
                if stats is not None:
                    replica.stats = stats
                news = [output for output in outputs if self._book(output)]
                self._place_waiting()
                if news or stats is not None:
                    self._inbox.append(Outputs(news, None if stats is None else self._stats()))
            case CallResult(call_id=call_id, value=value, error=error) if call_id in self._gatherings:
                gathering = self._gatherings[call_id]
                gathering.awaited.discard(replica.index)
                gathering.error = error or gathering.error
                gathering.values[replica.index] = value
                if gathering.method == "stats" and error is None:
                    replica.stats = msgspec.convert(value, SchedulerStats)
                self._finish_gathering(call_id)
            case EngineFailed(message=text):
                logger.error("replica %d ended: %s", replica.index, text)
                self._lose(replica, text)
            case _:
                pass

    def _book(self, output: EngineOutput) -> bool:
        """Note what a replica says of one request; whether the front end is to hear it, under the id it knows."""
        stream = self._placed[output.request_id]
        assert stream.ticket is not None
        if output.new_token_ids:
            self._placement.note_tokens(stream.ticket, len(output.new_token_ids))
        if output.finish_reason is not None:
            self._placement.end(stream.ticket)
            del self._placed[output.request_id]
        if stream.is_ended:
            return False
        output.request_id = stream.request.request_id
        stream.has_news = stream.has_news or bool(output.new_token_ids or output.prompt_logprobs)
        if output.finish_reason is not None:
            stream.is_ended = True
            del self._streams[output.request_id]
        return True

    def _welcome(self, news: ReplicaNews) -> None:
        """A replica that was started again is up, or could not be started."""
        replica = self._replicas[news.index]
        match news.what:
            case str(text):
                logger.info("replica %d: %s", news.index, text)
            case ProcessClient() as client:
                replica.client, replica.is_starting = client, False
                self._placement.open(replica.index, _capacity(client.info))
                if self._loop is not None:
                    self._loop.add_reader(client.descriptor, self._drain)
                logger.info("replica %d is up again", news.index)
                self._place_waiting()
                self._inbox.append(Outputs([], self._stats()))
            case JaxserveError() as error:
                logger.error("replica %d could not be started again: %s", news.index, error)
                self._lose(replica, str(error))

    def _lose(self, replica: Replica, why: str) -> None:
        """A replica's process has ended: see to its requests, and start another."""
        if self._loop is not None and replica.client is not None:
            self._loop.remove_reader(replica.client.descriptor)
        self._placement.shut(replica.index)
        if not replica.lose(time.monotonic()):
            logger.error("replica %d ended too often: it is not started again", replica.index)
        ends = self._release(replica.index, why)
        for call_id, gathering in list(self._gatherings.items()):
            gathering.awaited.discard(replica.index)
            self._finish_gathering(call_id)
        self._place_waiting()
        self._inbox.append(Outputs(ends, self._stats()))
        if not any(one.client is not None or one.is_starting for one in self._replicas):
            self._last_words = f"every replica has ended too often; the last one: {why}"
            self._inbox.append(EngineFailed(self._last_words))

    def _release(self, index: int, why: str) -> list[EngineOutput]:
        """Queue the requests of a lost replica again, or end them: the last outputs of those."""
        ends: list[EngineOutput] = []
        for stream in [one for one in self._placed.values() if one.ticket and one.ticket.replica == index]:
            del self._placed[stream.placed_id]
            stream.ticket = None
            if stream.is_ended:
                continue
            if not stream.has_news and stream.num_placements < MAX_PLACEMENTS:
                self._queue.push(stream.request)
                continue
            stream.is_ended = True
            del self._streams[stream.request.request_id]
            error = f"the replica that ran this request has ended ({why}); send it again"
            end = EngineOutput(stream.request.request_id, finish_reason=FinishReason.ERROR, error=error)
            end.error_kind = "ReplicaLost"
            ends.append(end)
        return ends

    def _stats(self) -> SchedulerStats:
        parts = [
            ReplicaStats(
                one.index,
                "up" if one.client is not None else "starting" if one.is_starting else "failed",
                one.num_restarts,
                self._placement.requests_of(one.index),
                one.stats,
            )
            for one in self._replicas
        ]
        return merged_stats(parts, len(self._queue), self._queue.num_tokens)

    def _post(self, news: ReplicaNews) -> None:
        """In a replica's thread."""
        self._news.put(news)
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # a closed loop; the news waits for the next one
                loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        """In the event loop: deliver what is there."""
        if self._loop is None or self._on_message is None:
            return
        self._collect()
        while self._inbox:
            self._on_message(self._inbox.popleft())

    def _tick(self) -> None:
        """A death makes no sound: look from time to time."""
        if self._loop is not None and self._last_words is None:
            self._watch = self._loop.call_later(DEATH_CHECK_S, self._tick)
        self._drain()

    def _detach(self) -> None:
        loop, self._loop = self._loop, None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if loop is not None and not loop.is_closed():
            for client in self._clients():
                loop.remove_reader(client.descriptor)


def _capacity(info: EngineInfo) -> Capacity:
    return Capacity(info.max_num_seqs, info.max_num_batched_tokens, info.num_pages)


def _signed(seed: int) -> int:
    """64 bits as SamplingParams takes them; -1 would mean "no seed"."""
    signed = seed - 2**64 if seed >= 2**63 else seed
    return 0 if signed == -1 else signed
