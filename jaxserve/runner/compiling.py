"""Compiling programs in threads, in order: what must be there first is waited for, the rest may come later."""

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxserve.runner.heap import settle_heap
from jaxserve.runner.programs import Program

logger = logging.getLogger(__name__)

_STACK_BYTES = 64 << 20  # XLA recurses deeply over an unrolled model

Make = Callable[[Program], Any]

# Tracing is Python and holds the interpreter's lock: one thread traces while the others compile. Otherwise all
# would trace by turns, and no compilation would begin before nearly everything is traced.
_trace_lock = threading.Lock()


def compile_program(program: Program) -> jax.stages.Compiled:
    """Trace, lower and compile. May be called from several threads."""
    with _trace_lock:
        lowered = program.lower()
    return lowered.compile(program.options)


class CompilerThread(threading.Thread):
    """A thread that makes programs; what it compiles late is no surprise (see `CompileCounter`)."""


class ProgramMaker:
    """Makes (compiles or loads) each program in turn and hands it to `done`, from threads.

    The first num_needed programs are needed to begin; the first that fails ends the work, and `wait` raises
    its error. A program after those that fails is logged and left out. Threads are not daemons, as the
    interpreter must not end in the midst of XLA: they leave after the program at hand once `stop` is called
    or the main thread has ended.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        num_needed: int,
        make: Make,
        done: Callable[[Program, Any], None],
    ) -> None:
        self._waiting = deque(programs)
        self._num_programs, self._num_needed = len(programs), num_needed
        self._num_left, self._num_left_needed = len(programs), num_needed
        self._make, self._done = make, done
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._is_stopped = False
        self.failed: list[str] = []
        self._threads: list[CompilerThread] = []

    def start(self) -> None:
        """Begin with a thread a core; half of them go on when the needed programs are made, beside the serving."""
        num_cores = os.cpu_count() or 1
        previous = threading.stack_size(_STACK_BYTES)
        try:
            for index in range(min(num_cores, self._num_programs)):
                stays = index < max(1, num_cores // 2)
                name = f"jaxserve-compile-{index}"
                self._threads.append(CompilerThread(target=self._work, args=(stays,), name=name))
                self._threads[-1].start()
        finally:
            threading.stack_size(previous)

    def wait(self, progress: Callable[[int, int], None]) -> None:
        """Until the needed programs are made. Raises what kept one from it.

        progress: told (made, needed) now and then, in the caller's thread.
        """
        made = 0
        while made < self._num_needed:
            with self._changed:
                while self._error is None and self._num_needed - self._num_left_needed == made:
                    self._changed.wait()
                if self._error is not None:
                    raise self._error
                made = self._num_needed - self._num_left_needed
            progress(made, self._num_needed)

    def stop(self) -> None:
        """Begin no further program; returns at once, while the programs at hand may still be in work."""
        with self._changed:
            self._is_stopped = True
            self._waiting.clear()

    def join(self) -> None:
        """Wait until every thread has left."""
        for thread in self._threads:
            thread.join()

    @property
    def num_pending(self) -> int:
        """Programs still to come."""
        return 0 if self._is_stopped else self._num_left

    def _next(self, stays: bool) -> tuple[Program, bool] | None:
        """The next program and whether it is needed to begin; None: leave."""
        with self._changed:
            taken = self._num_programs - len(self._waiting)
            is_needed = taken < self._num_needed
            over = self._is_stopped or not self._waiting or not threading.main_thread().is_alive()
            return None if over or not (stays or is_needed) else (self._waiting.popleft(), is_needed)

    def _work(self, stays: bool) -> None:
        while (job := self._next(stays)) is not None:
            program, is_needed = job
            try:
                self._done(program, self._make(program))
            except BaseException as error:  # it belongs to whoever waits, or to the log; never to a thread's end
                self._fail(program, is_needed, error)
            self._count(is_needed)

    def _fail(self, program: Program, is_needed: bool, error: BaseException) -> None:
        with self._changed:
            if is_needed:
                self._error = self._error or error
                self._is_stopped = True
                self._waiting.clear()
            elif not self._is_stopped:
                self.failed.append(program.name)
                logger.error("%s could not be compiled and is not used: %s", program.name, error)

    def _count(self, is_needed: bool) -> None:
        with self._changed:
            self._num_left -= 1
            self._num_left_needed -= is_needed
            self._changed.notify_all()
            is_last = self._num_left == 0 and self._num_needed < self._num_programs and not self._is_stopped
        if is_last:  # one pause now for none later
            settle_heap()
            logger.info("all %d programs are there", self._num_programs - len(self.failed))
