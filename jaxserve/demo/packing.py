"""Documents packed into training rows of equal length."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from jaxserve.demo.corpus import Document
from jaxserve.demo.tokenizer import encode


@dataclass(frozen=True)
class Rows:
    """Rows of a batch: token_ids_BT int32, and learned_BT: the tokens whose prediction counts."""

    token_ids_BT: NDArray[np.int32]
    learned_BT: NDArray[np.bool_]


def rows(tokenizer: Tokenizer, documents: Iterable[Document], length: int) -> Iterator[tuple[list[int], list[bool]]]:
    """Rows of `length` tokens: each begins with a document; what does not fit is cut off."""
    token_ids: list[int] = []
    learned: list[bool] = []
    for document in documents:
        ids, mask = encode(tokenizer, document)
        token_ids += ids
        learned += mask
        if len(token_ids) >= length:
            yield token_ids[:length], learned[:length]
            token_ids, learned = [], []


def batches(tokenizer: Tokenizer, documents: Iterable[Document], batch: int, length: int) -> Iterator[Rows]:
    """Batches of `batch` rows; an incomplete last batch is dropped."""
    source = rows(tokenizer, documents, length)
    while len(chunk := list(islice(source, batch))) == batch:
        yield Rows(np.array([ids for ids, _ in chunk], np.int32), np.array([mask for _, mask in chunk], np.bool_))
