"""`ProcessClient`: the engine in a child process, over a private ipc socket with typed messages."""

import asyncio
import contextlib
import logging
import os
import shutil
import site
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import zmq

from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import EngineDead
from jaxserve.engine.client import CLOSE_TIMEOUT_S, OnMessage, Progress, silent, wait_until_ready
from jaxserve.engine.messages import EngineFailed, EngineInfo, FromEngine, Shutdown, ToEngine
from jaxserve.engine.process import ProcessSpec

DEATH_CHECK_S = 0.25
MAX_SOCKET_PATH_BYTES = 100  # a Unix socket's path may have 107
STDERR = 2


def private_dir() -> Path:
    """A new directory that only this user may enter, with a path short enough for a socket in it."""
    path = Path(tempfile.mkdtemp(prefix="jaxserve-"))
    if len(os.fsencode(path / "engine.sock")) <= MAX_SOCKET_PATH_BYTES:
        return path
    path.rmdir()
    return Path(tempfile.mkdtemp(prefix="jaxserve-", dir="/tmp"))


def child_environment() -> dict[str, str]:
    """This process's environment; a checkout that is not installed stays importable in the child."""
    environment = dict(os.environ)
    root = str(Path(__file__).parents[2])
    if root not in site.getsitepackages():
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), root]))
    return environment


class _Child:
    """The process, its socket and its directory; `end` gives all three back, once, also at garbage collection."""

    def __init__(self, args: EngineArgs, environment: Mapping[str, str]) -> None:
        self.directory = private_dir()
        self._end_lock = threading.Lock()
        self._is_ended = False
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.PAIR)
        self.socket.set_hwm(0)
        self.socket.linger = 0
        endpoint = f"ipc://{self.directory}/engine.sock"
        self.socket.bind(endpoint)
        # -P: a file of the user's working directory must not stand in for a library. Own process group: the
        # terminal's Ctrl-C is for the front end, which drains. Standard output belongs to the user's results.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "jaxserve.engine.process"],
            stdin=subprocess.PIPE,
            stdout=STDERR,
            env={**child_environment(), **environment},
            process_group=0,
        )
        spec = ProcessSpec(endpoint, args, logging.getLogger("jaxserve").getEffectiveLevel())
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: the next poll of the process says so
            self.process.stdin.write(msgspec.json.encode(spec) + b"\n")
            self.process.stdin.flush()

    def end(self, timeout_s: float) -> None:
        """Let it leave by itself for timeout_s, then kill it; wait for it, so that no zombie stays.

        A process that exits while another thread still waits for the start ends the child from both.
        """
        with self._end_lock:
            if not self._is_ended:
                self._is_ended = True
                self._end(timeout_s)

    def _end(self, timeout_s: float) -> None:
        if timeout_s > 0:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout_s)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        self.socket.close()
        self.context.term()
        shutil.rmtree(self.directory, ignore_errors=True)


class ProcessClient:
    """The engine in a process of its own: it may die without us, never outlive us.

    environment: variables that the process gets besides our own.
    """

    info: EngineInfo

    def __init__(self, args: EngineArgs, environment: Mapping[str, str] | None = None) -> None:
        self._args = args
        self._environment = dict(environment or {})
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._child: _Child | None = None
        self._finalizer: weakref.finalize[[float], ProcessClient] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_message: OnMessage | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._last_words: str | None = None

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._alive().process.pid

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """Where its messages arrive, to wait for several engines at once."""
        return self._alive().socket

    @property
    def descriptor(self) -> int:
        """That socket's, for an event loop to watch; there until `close`, of a dead engine too."""
        assert self._child is not None
        return self._child.socket.fileno()

    def launch(self) -> None:
        """Create the process; `start` waits until it is ready."""
        self._child = _Child(self._args, self._environment)
        self._finalizer = weakref.finalize(self, self._child.end, 0.0)

    def kill(self) -> None:
        """End the process now, from any thread; whoever waits for its messages is told of its death."""
        child = self._child
        if child is not None:
            child.process.kill()

    def start(self, progress: Progress = silent) -> EngineInfo:
        if self._child is None:
            self.launch()
        try:
            self.info = wait_until_ready(self.receive, progress)
        except BaseException:
            self.close()
            raise
        return self.info

    def send(self, message: ToEngine) -> None:
        child = self._alive()
        try:
            child.socket.send(self._encoder.encode(message), zmq.NOBLOCK)
        except zmq.Again:  # nobody is at the other end; its last messages are still to be read, and then its death
            raise EngineDead("the engine process has ended") from None
        # A socket's descriptor signals an edge once, and sending may have swallowed the one for arrived messages.
        if self._loop is not None and child.socket.poll(0):
            self._loop.call_soon(self._drain)

    def receive(self) -> FromEngine:
        child = self._alive()
        while not child.socket.poll(int(DEATH_CHECK_S * 1000)):
            if child.process.poll() is not None and not child.socket.poll(0):
                raise EngineDead(self._note_death(child))
        message: FromEngine = self._decoder.decode(child.socket.recv())
        if isinstance(message, EngineFailed):
            self._last_words = message.message
            raise EngineDead(message.message)
        return message

    def attach(self, loop: asyncio.AbstractEventLoop, on_message: OnMessage) -> None:
        child = self._alive()
        self._detach()
        self._loop, self._on_message = loop, on_message
        loop.add_reader(child.socket.fileno(), self._drain)
        loop.call_soon(self._drain)
        self._watch = loop.call_later(DEATH_CHECK_S, self._check_alive)

    def close(self) -> None:
        finalizer, self._finalizer = self._finalizer, None
        child, self._child = self._child, None
        if child is None or finalizer is None:
            return
        self._detach(child)
        if self._last_words is None:
            self._last_words = "the engine is shut down"
        asked = hasattr(self, "info") and child.process.poll() is None
        if asked:
            with contextlib.suppress(zmq.Again):  # it has left a moment ago
                child.socket.send(self._encoder.encode(Shutdown()), zmq.NOBLOCK)
        finalizer.detach()
        child.end(CLOSE_TIMEOUT_S if asked else 0.0)

    def _alive(self) -> _Child:
        if self._last_words is not None or self._child is None:
            raise EngineDead(self._last_words or "the engine is not started")
        return self._child

    def _note_death(self, child: _Child) -> str:
        if self._last_words is None:
            code = child.process.poll()
            how = f"by signal {-code}" if code is not None and code < 0 else f"with exit code {code}"
            self._last_words = f"the engine process ended {how}"
        return self._last_words

    def arrived(self) -> Iterator[FromEngine]:
        """What has come, without waiting; after the last message of a dead engine, once, its EngineFailed."""
        child = self._child
        while child is not None and self._last_words is None:
            has_ended = child.process.poll() is not None  # asked first: what it sent before that is all there
            try:
                message: FromEngine = self._decoder.decode(child.socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                if not has_ended:
                    return
                message = EngineFailed(self._note_death(child))
            if isinstance(message, EngineFailed):
                self._last_words = message.message
            yield message
            child = self._child

    def _drain(self) -> None:
        """In the event loop: deliver every message that has arrived."""
        for message in self.arrived():
            if self._on_message is not None:
                self._on_message(message)

    def _check_alive(self) -> None:
        if self._loop is not None and self._last_words is None:
            self._watch = self._loop.call_later(DEATH_CHECK_S, self._check_alive)
            self._drain()

    def _detach(self, child: _Child | None = None) -> None:
        child = child or self._child
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._loop is not None and child is not None and not self._loop.is_closed():
            self._loop.remove_reader(child.socket.fileno())
        self._loop = None
