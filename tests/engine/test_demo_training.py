"""The training loop of the demonstration model learns, and its checkpoint is read back unchanged."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxserve.core.checkpoint import load_model_config
from jaxserve.demo.corpus import documents
from jaxserve.demo.export import save_checkpoint
from jaxserve.demo.learning import initial_params, learning_rate, named_params
from jaxserve.demo.packing import batches
from jaxserve.demo.tokenizer import BEGIN_ID, save_tokenizer, train_tokenizer
from jaxserve.demo.train import MODEL, Schedule, rounded, train
from jaxserve.models.weights import load_params

MICRO = replace(
    MODEL, vocab_size=400, hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16, intermediate_size=64
)
TOKENIZER = train_tokenizer((document.plain() for document in documents(1, 300)), MICRO.vocab_size)


def test_a_few_steps_lower_the_loss() -> None:
    schedule = Schedule(num_steps=40, batch=4, length=64, peak_rate=1e-2)
    trained = train(MICRO, schedule, TOKENIZER)
    assert len(trained.losses) == 40
    assert np.mean(trained.losses[-5:]) < np.mean(trained.losses[:5]) - 0.7


def test_a_saved_checkpoint_is_read_back_as_it_was_rounded(tmp_path: Path) -> None:
    params = initial_params(MICRO, jax.random.key(1))
    save_checkpoint(tmp_path, MICRO, params, "card")
    save_tokenizer(TOKENIZER, tmp_path)
    config = load_model_config(tmp_path, dtype="float32")
    assert replace(config, sliding_windows=MICRO.sliding_windows) == MICRO
    loaded = named_params(config, load_params(config, tmp_path).leaves)
    for name, value in rounded(params).items():
        np.testing.assert_array_equal(np.asarray(loaded[name]), np.asarray(value))


def test_rows_begin_with_a_document_and_are_full() -> None:
    for rows in islice(batches(TOKENIZER, documents(1, None), 3, 96), 5):
        assert rows.token_ids_BT.shape == rows.learned_BT.shape == (3, 96)
        assert (rows.token_ids_BT[:, 0] == BEGIN_ID).all()
        assert rows.token_ids_BT.max() < MICRO.vocab_size
        assert 0.2 < rows.learned_BT.mean() <= 1.0


@pytest.mark.parametrize(("progress", "low", "high"), [(0.0, 0.0, 0.1), (0.03, 0.99, 1.0), (1.0, 0.0, 0.021)])
def test_the_learning_rate_rises_and_falls(progress: float, low: float, high: float) -> None:
    assert low < learning_rate(progress, 1.0) <= high
