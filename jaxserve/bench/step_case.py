"""A step by itself: what a benchmark gives a compiled program to run back to back."""

import argparse
from dataclasses import dataclass

import numpy as np

from jaxserve.batch.buckets import Bucket, make_grid
from jaxserve.batch.step_batch import PackedStep
from jaxserve.core.config import EngineConfig


@dataclass(frozen=True)
class Case:
    """num_tokens of the step in rows of `length`: one token each (decode) or all of them (prompt)."""

    kind: str
    num_tokens: int
    length: int

    @classmethod
    def parse(cls, text: str) -> "Case":
        kind, _, sizes = text.partition(":")
        num_tokens, _, length = sizes.partition("x")
        if kind not in ("decode", "prompt") or not (num_tokens.isdigit() and length.isdigit()):
            raise argparse.ArgumentTypeError(f"{text!r} is neither decode:ROWSxCONTEXT nor prompt:TOKENSxLENGTH")
        return cls(kind, int(num_tokens), int(length))

    @property
    def chunk(self) -> int:
        return 1 if self.kind == "decode" else self.length

    @property
    def num_rows(self) -> int:
        return max(1, self.num_tokens // self.chunk)

    def bucket(self, config: EngineConfig) -> Bucket:
        limits = config.scheduler
        grid = make_grid(limits.max_num_seqs, limits.max_num_batched_tokens)
        return grid.pick(self.num_rows, self.num_rows * self.chunk)

    def packed(self, config: EngineConfig) -> tuple[np.ndarray, np.ndarray]:
        """The step's inputs, and the pages of its rows, from anywhere in the pool."""
        size, rows, chunk, length = config.cache.page_size, self.num_rows, self.chunk, self.length
        rng, num_state_rows = np.random.default_rng(0), config.scheduler.max_num_seqs
        num_slots = config.cache.num_pages * size
        step = PackedStep(self.bucket(config), size, num_slots=num_slots, num_state_rows=num_state_rows)
        total, num_columns = rows * chunk, -(-length // size)
        pages = rng.permutation(config.cache.num_pages)[: rows * num_columns].reshape(rows, num_columns)
        positions = np.tile(np.arange(length - chunk, length), rows)
        ends = np.arange(1, rows + 1) * chunk
        step["row_counts"][:] = rows if chunk == 1 else 0, rows
        step["query_starts"][1 : rows + 1], step["query_starts"][rows + 1 :] = ends, total
        step["last_tokens_B"][:rows], step["context_lens_B"][:rows] = ends - 1, length
        step["token_ids_T"][:total] = rng.integers(0, config.model.vocab_size, total)
        step["positions_T"][:total], step["rope_lens_T"][:total] = positions, length
        step["slots_T"][:total] = np.repeat(pages, chunk, axis=0)[np.arange(total), positions // size] * size + (
            positions % size
        )
        step["state_rows_B"][:rows] = np.arange(rows)
        step["is_active_B"][:rows], step["sample_positions_B"][:rows] = 1, length
        return step.vector, pages
