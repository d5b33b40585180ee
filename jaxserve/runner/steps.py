"""`Steps`: the compiled programs an engine has so far, and which bucket a step may take."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxserve.batch.buckets import Bucket, BucketGrid
from jaxserve.runner.programs import SMALL, Program, names_of
from jaxserve.runner.step import DeviceState, StepFunction, join


class Steps:
    """Programs come in from threads; a bucket is picked only once all of its programs are there.

    halves: see `programs_of`.
    """

    def __init__(self, grid: BucketGrid, *, halves: bool) -> None:
        self.grid = grid
        self._halves = halves
        self._programs: dict[str, Any] = {}
        self._steps: dict[Bucket, StepFunction] = {}
        self._ready = BucketGrid((), ())
        self._lock = threading.Lock()

    def first_needed(self, programs: Sequence[Program]) -> list[Program]:
        """The fewest programs that can run every step: the largest bucket of each kind, and the small ones."""
        largest = (self.grid.decode[-1], self.grid.mixed[-1])
        names = {*SMALL, *(name for bucket in largest for name in names_of(bucket, halves=self._halves))}
        return [program for program in programs if program.name in names]

    def add(self, program: Program, compiled: Any) -> None:
        """Called from any thread: a step sees the bucket before or after, never between."""
        with self._lock:
            self._programs[program.name] = compiled
            for bucket in self.grid.all:
                names = names_of(bucket, halves=self._halves)
                if bucket not in self._steps and all(name in self._programs for name in names):
                    parts = [self._programs[name] for name in names]
                    self._steps[bucket] = join(*parts) if self._halves else parts[0]
            self._ready = self.grid.only(self._steps)  # one assignment: what `pick` reads is always whole

    @property
    def ready(self) -> BucketGrid:
        """The buckets that can run now."""
        return self._ready

    def pick(self, num_rows: int, num_tokens: int) -> Bucket:
        """The smallest bucket that is ready and holds a step; see `BucketGrid.pick`."""
        return self._ready.pick(num_rows, num_tokens)

    def __getitem__(self, bucket: Bucket) -> StepFunction:
        return self._steps[bucket]

    def initial_state(self, kv_scales_L2K: np.ndarray | None) -> DeviceState:
        """A new device state: empty pool, no rows."""
        scales_L2K = None if kv_scales_L2K is None else np.asarray(kv_scales_L2K, np.float32)
        return self._programs["initial_state"](scales_L2K)

    def small(self, name: str) -> Callable[..., Any]:
        """One of the programs that update a row: load_row, load_bias or load_table."""
        return self._programs[name]
