"""The padded shapes a step may have. Only these are ever compiled, all of them before the first request or, if
asked for, some of them behind it."""

from collections.abc import Container
from dataclasses import dataclass

_FINE = 256  # tokens from which on a GPU's products take time for every token


@dataclass(frozen=True, order=True, slots=True)
class Bucket:
    """A step's shape: tokens and rows it has room for; equal numbers mean one token a row (decode only)."""

    num_tokens: int
    num_rows: int

    @property
    def is_decode(self) -> bool:
        return self.num_tokens == self.num_rows


@dataclass(frozen=True, slots=True)
class BucketGrid:
    """All buckets of an engine, smallest first."""

    decode: tuple[Bucket, ...]
    mixed: tuple[Bucket, ...]

    @property
    def all(self) -> tuple[Bucket, ...]:
        return self.decode + self.mixed

    def only(self, some: Container[Bucket]) -> "BucketGrid":
        """The grid without the buckets that are not in `some`."""
        return BucketGrid(
            tuple(bucket for bucket in self.decode if bucket in some),
            tuple(bucket for bucket in self.mixed if bucket in some),
        )

    def pick(self, num_rows: int, num_tokens: int) -> Bucket:
        """The smallest bucket that holds a step. num_tokens == num_rows means decode only."""
        buckets = self.decode if num_tokens == num_rows else self.mixed
        for bucket in buckets:
            if bucket.num_tokens >= num_tokens and bucket.num_rows >= num_rows:
                return bucket
        raise AssertionError(f"no bucket holds {num_rows} rows and {num_tokens} tokens: the scheduler broke its budget")


def make_grid(max_num_seqs: int, max_num_batched_tokens: int) -> BucketGrid:
    """Decode buckets of 1, 2, 4, … rows; mixed ones of 16, 32, … tokens with rows for half as many requests.

    Padding costs at most twice the tokens, and the output head runs for at most half as many rows as
    there are tokens. Where time is in proportion to the tokens, and not to the weights read, sizes lie closer:
    two a doubling from 128 on, four from 256 to 1,024, and mixed steps have rows for three quarters of their tokens,
    so that a few prompts beside many rows that generate do not double the step.
    """
    decode = tuple(Bucket(n, n) for n in _sizes(1, max_num_seqs))
    sizes = _sizes(16, max(max_num_batched_tokens, 16))
    mixed = {Bucket(tokens, min(max_num_seqs, 3 * tokens // 4 if tokens >= _FINE else tokens // 2)) for tokens in sizes}
    mixed.add(Bucket(sizes[-1], min(max_num_seqs, sizes[-1] - 1)))  # whatever the budget allows
    return BucketGrid(decode, tuple(sorted(mixed)))


def _sizes(first: int, last: int) -> list[int]:
    """first, 2 first, 4 first, …, closer where `make_grid` says so, and at the end last itself."""
    sizes: set[int] = set()
    size = first
    while size < last:
        num_parts = 1 if size < _FINE // 2 else 4 if _FINE <= size < 4 * _FINE else 2
        sizes |= {size + size * part // num_parts for part in range(num_parts)}
        size *= 2
    return [*sorted(size for size in sizes if size < last), last]
