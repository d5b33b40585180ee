"""`Replica`: one engine process of a fleet, and the ones that take its place when it ends."""

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import EngineDead, JaxserveError
from jaxserve.engine.client import CLOSE_TIMEOUT_S
from jaxserve.engine.messages import SchedulerStats
from jaxserve.engine.process_client import ProcessClient

MAX_RESTARTS = 3
RESTART_WINDOW_S = 600.0
FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0


class RestartPolicy:
    """At most MAX_RESTARTS within RESTART_WINDOW_S, each after twice the delay of the one before."""

    def __init__(self) -> None:
        self._restarts_s: deque[float] = deque()

    def delay_s(self, now_s: float) -> float | None:
        """Counts a restart and says how long to wait before it; None where there have been too many."""
        while self._restarts_s and now_s - self._restarts_s[0] >= RESTART_WINDOW_S:
            self._restarts_s.popleft()
        if len(self._restarts_s) >= MAX_RESTARTS:
            return None
        self._restarts_s.append(now_s)
        return min(FIRST_DELAY_S * 2 ** (len(self._restarts_s) - 1), MAX_DELAY_S)


@dataclass(frozen=True, slots=True)
class ReplicaNews:
    """What a starting replica has to say: a line for a person, or, once, the outcome."""

    index: int
    what: str | ProcessClient | JaxserveError


class Replica:
    """Used by one thread; `begin` waits for the process in a thread of its own, which posts the news.

    client: the running engine, None while there is none. is_starting: one is on its way.
    num_restarts: how often another process took the place of the first. stats: the engine's last snapshot.
    """

    def __init__(
        self, index: int, args: EngineArgs, environment: Mapping[str, str], post: Callable[[ReplicaNews], None]
    ) -> None:
        self.index = index
        self.client: ProcessClient | None = None
        self.is_starting = False
        self.num_restarts = 0
        self.stats = SchedulerStats()
        self._args = args
        self._environment = environment
        self._post = post
        self._policy = RestartPolicy()
        self._lock = threading.Lock()
        self._is_closed = threading.Event()
        self._coming: ProcessClient | None = None
        self._thread: threading.Thread | None = None

    def begin(self, delay_s: float = 0.0, ended: ProcessClient | None = None) -> None:
        """Start a process after a while; first tidy up after the one that has ended."""
        self.is_starting = True
        name = f"jaxserve-replica-{self.index}"
        self._thread = threading.Thread(target=self._run, args=(delay_s, ended), name=name, daemon=True)
        self._thread.start()

    def lose(self, now_s: float) -> bool:
        """Its process ended, or could not start: begin anew. False where it has ended too often: it is given up."""
        ended, self.client = self.client, None
        self.is_starting = False
        self.stats = SchedulerStats()
        delay_s = self._policy.delay_s(now_s)
        if delay_s is None:
            if ended is not None:
                ended.kill()
                ended.close()
            return False
        self.num_restarts += 1
        self.begin(delay_s, ended)
        return True

    def stop_starting(self) -> None:
        """Begin no more; what is on its way ends."""
        with self._lock:
            self._is_closed.set()
            coming = self._coming
        if coming is not None:
            coming.kill()

    def close(self) -> None:
        """End the process, whatever state it is in."""
        self.stop_starting()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)
        client, self.client = self.client, None
        if client is not None:
            client.close()

    def _run(self, delay_s: float, ended: ProcessClient | None) -> None:
        if ended is not None:
            ended.kill()  # it may hang in its last words
            ended.close()
        if self._is_closed.wait(delay_s):
            return
        client = ProcessClient(self._args, self._environment)
        try:
            with self._lock:
                if self._is_closed.is_set():
                    return
                client.launch()
                self._coming = client
            client.start(lambda text: self._post(ReplicaNews(self.index, text)))
        except JaxserveError as error:
            self._post(ReplicaNews(self.index, error))
        except Exception as error:  # no process or socket to be had
            self._post(ReplicaNews(self.index, EngineDead(f"{type(error).__name__}: {error}")))
        else:
            with self._lock:
                self._coming = None
                is_wanted = not self._is_closed.is_set()
            if is_wanted:
                self._post(ReplicaNews(self.index, client))
            else:
                client.close()
