"""The engine's own process: `python -m jaxserve.engine.process`, started by `ProcessClient` alone.

The first line of standard input is a `ProcessSpec` in JSON. Standard input then stays open for as long
as the parent lives: its end is the parent's end, and ours.
"""

import logging
import os
import select
import signal
import sys
import threading

import msgspec
import zmq

from jaxserve.core.config import EngineArgs
from jaxserve.engine.loop import COMPILER_THREADS, run_engine
from jaxserve.engine.messages import FromEngine, ToEngine

LINGER_MS = 2000
PARENT_CHECK_S = 1.0
STDIN = 0


class ProcessSpec(msgspec.Struct):
    """endpoint: the ipc:// address the parent has bound; log_level: of the parent's jaxserve logger."""

    endpoint: str
    args: EngineArgs
    log_level: int = logging.INFO


class Pipe:
    """The child's end of the socket: typed messages, msgpack."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.linger = LINGER_MS
        self._socket.connect(endpoint)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ToEngine)

    def emit(self, message: FromEngine) -> None:
        self._socket.send(self._encoder.encode(message))

    def receive(self, wait: bool) -> list[ToEngine]:
        """All messages that have arrived; with wait, at least one."""
        messages: list[ToEngine] = []
        if wait:
            messages.append(self._decoder.decode(self._socket.recv()))
        while self._socket.poll(0):
            messages.append(self._decoder.decode(self._socket.recv()))
        return messages

    def close(self) -> None:
        """Returns when the last words are out, after LINGER_MS at most."""
        self._socket.close()
        self._context.term()


def exit_with_parent(parent_pid: int) -> None:
    """Block while the parent lives, then end this process at once, whatever its other threads do.

    A pipe and the parent's pid, not PR_SET_PDEATHSIG: that signal comes at the end of the *thread* that
    started us, and a forked sibling may hold the pipe open.
    """
    while os.getppid() == parent_pid:
        readable, _, _ = select.select([STDIN], [], [], PARENT_CHECK_S)
        if readable and not os.read(STDIN, 1024):
            break
    os._exit(1)


def main() -> int:
    # The front end decides when we leave: on Ctrl-C, or a service manager's SIGTERM to everybody, it drains first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    parent_pid = os.getppid()
    line = sys.stdin.buffer.readline()
    if not line:
        return 1
    spec = msgspec.json.decode(line, type=ProcessSpec)
    threading.Thread(target=exit_with_parent, args=(parent_pid,), daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("jaxserve").setLevel(spec.log_level)
    pipe = Pipe(spec.endpoint)
    try:
        asked_to_leave = run_engine(spec.args, pipe.receive, pipe.emit)
    finally:
        pipe.close()
    code = 0 if asked_to_leave else 1
    in_disorder = code != 0 and spec.args.nnodes != 1  # JAX's way out would wait for the other hosts
    if in_disorder or any(thread.name.startswith(COMPILER_THREADS) for thread in threading.enumerate()):
        # XLA cannot be interrupted, and the interpreter would wait for it: nothing is left to be tidied up.
        logging.shutdown()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
