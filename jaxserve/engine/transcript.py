"""`Transcript`: a running digest of what a rank did, to be compared with the other ranks'."""

import threading
from hashlib import blake2b

from jaxserve.core.step_result import RowResult

_DIGEST_BYTES = 16
_HISTORY = 65_536  # steps that the leader remembers: more than any live follower is behind


class Transcript:
    """Decisions and sampled tokens, in order. One thread writes, another may read `latest` or `at`."""

    def __init__(self) -> None:
        self._hash = blake2b(digest_size=_DIGEST_BYTES)
        self._history: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self._num_steps = 0
        self._digest = self._hash.digest()

    def decided(self, frame: bytes) -> None:
        """A decision, as it travels."""
        self._hash.update(frame)

    def collected(self, results: list[RowResult]) -> None:
        """The tokens of a step; a step is counted with them."""
        for result in results:
            self._hash.update(repr((result.request_id, result.token_id, result.is_finite)).encode())
        with self._lock:
            self._num_steps += 1
            self._digest = self._hash.digest()
            self._history[self._num_steps] = self._digest
            self._history.pop(self._num_steps - _HISTORY, None)

    @property
    def latest(self) -> tuple[int, bytes]:
        """(steps collected, digest of everything up to the last of them)."""
        with self._lock:
            return self._num_steps, self._digest

    def at(self, num_steps: int) -> bytes | None:
        """The digest after so many steps; None where they have not happened yet, or too long ago."""
        with self._lock:
            return self._history.get(num_steps)
