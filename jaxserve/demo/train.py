"""Train the bundled demonstration model: `python -m jaxserve.demo.train --out DIRECTORY --minutes N`.

Text, tokenizer, model code and optimizer are all of this repository. With --steps instead of
--minutes the same machine gives the same model every time.
"""

import argparse
import itertools
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import jax.numpy as jnp
from tokenizers import Tokenizer

from jaxserve.core.config import ModelConfig
from jaxserve.demo import world
from jaxserve.demo.corpus import TRAIN_SEED, documents, held_out
from jaxserve.demo.export import CARD, save_checkpoint
from jaxserve.demo.learning import Optimizer, Params, initial_params, learning_rate, make_loss
from jaxserve.demo.packing import batches
from jaxserve.demo.tokenizer import BEGIN_ID, END_ID, MAX_LENGTH, VOCAB_SIZE, encode, save_tokenizer, train_tokenizer

MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=VOCAB_SIZE,
    hidden_size=192,
    num_layers=4,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    intermediate_size=512,
    max_position_embeddings=MAX_LENGTH,
    tie_word_embeddings=True,
    dtype="float32",
    bos_token_id=BEGIN_ID,
    eos_token_ids=(END_ID,),
)
NUM_TOKENIZER_DOCUMENTS = 20_000
NUM_HELD_OUT = 100


@dataclass(frozen=True)
class Schedule:
    """How long to train: `num_steps` if given, else `minutes` of wall time. `length`: tokens of a row."""

    minutes: float = 20.0
    num_steps: int | None = None
    batch: int = 4
    length: int = 256
    peak_rate: float = 4e-3
    seed: int = 0


@dataclass
class Trained:
    """What came out. losses: one a step, nats; num_documents: at most so many were read from the corpus."""

    params: Params
    losses: list[float] = field(default_factory=list)
    num_documents: int = 0
    elapsed_s: float = 0.0
    cpu_s: float = 0.0


def train(config: ModelConfig, schedule: Schedule, tokenizer: Tokenizer) -> Trained:
    """Train from scratch on an endless stream of fresh documents."""
    counter = itertools.count()
    source = (document for document, _ in zip(documents(TRAIN_SEED, None), counter, strict=False))
    optimizer = Optimizer(make_loss(config), initial_params(config, jax.random.key(schedule.seed)))
    trained = Trained(optimizer.params)
    started, cpu_started = time.monotonic(), time.process_time()
    for step, rows in enumerate(batches(tokenizer, source, schedule.batch, schedule.length + 1)):
        trained.elapsed_s = time.monotonic() - started
        progress = step / schedule.num_steps if schedule.num_steps else trained.elapsed_s / (60 * schedule.minutes)
        if progress >= 1.0:
            break
        rate = learning_rate(progress, schedule.peak_rate)
        loss = optimizer.step(jnp.asarray(rows.token_ids_BT), jnp.asarray(rows.learned_BT), rate)
        trained.losses.append(float(loss))
        if step % 50 == 0:
            recent = trained.losses[-50:]
            mean = sum(recent) / len(recent)
            print(
                f"step {step}  {progress:5.1%}  loss {mean:.3f}  rate {rate:.5f}  {trained.elapsed_s:.0f} s", flush=True
            )
    trained.cpu_s = time.process_time() - cpu_started
    trained.params, trained.num_documents = optimizer.params, next(counter)
    return trained


def held_out_loss(config: ModelConfig, params: Params, tokenizer: Tokenizer, num_documents: int, count: int) -> float:
    """Mean nats a learned token, document by document, over `count` documents the training did not see.

    num_documents: how many documents of the training seed are excluded. Documents are padded to one
    length with tokens that do not count.
    """
    length = 256
    loss = jax.jit(make_loss(config))
    total, num_tokens = 0.0, 0
    for document in held_out(count, num_documents):
        token_ids, learned = (part[:length] for part in encode(tokenizer, document))
        padding = length - len(token_ids)
        ids_BT = jnp.asarray([token_ids + [END_ID] * padding])
        learned_BT = jnp.asarray([learned + [False] * padding])
        total += float(loss(params, ids_BT, learned_BT)) * sum(learned)
        num_tokens += sum(learned)
    return total / num_tokens


def rounded(params: Params) -> Params:
    """The parameters as the bfloat16 checkpoint keeps them."""
    return {name: value.astype(jnp.bfloat16).astype(jnp.float32) for name, value in params.items()}


def model_card(config: ModelConfig, schedule: Schedule, trained: Trained, loss: float) -> str:
    """README.md of the checkpoint, with the numbers of this training."""
    num_steps = len(trained.losses)
    return CARD.format(
        num_params=sum(value.size for value in trained.params.values()), num_layers=config.num_layers,
        hidden_size=config.hidden_size, num_heads=config.num_heads, num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim, vocab_size=config.vocab_size, num_capitals=len(world.CAPITALS),
        num_animals=len(world.ANIMALS), minutes=schedule.minutes, num_steps=num_steps, batch=schedule.batch,
        length=schedule.length, num_tokens=num_steps * schedule.batch * schedule.length,
        num_documents=trained.num_documents, elapsed_min=trained.elapsed_s / 60, cpu_min=trained.cpu_s / 60,
        num_held_out=NUM_HELD_OUT,
        held_out_loss=loss,
    )  # fmt: skip


def main() -> None:
    """Command line: train and write the checkpoint."""
    parser = argparse.ArgumentParser(description="Train the bundled demonstration model.")
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument("--minutes", type=float, default=20.0, help="wall time of the training")
    parser.add_argument("--steps", type=int, default=None, help="number of steps, instead of --minutes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the initial weights")
    given = parser.parse_args()
    schedule = Schedule(minutes=given.minutes, num_steps=given.steps, seed=given.seed)
    tokenizer = train_tokenizer(document.plain() for document in documents(TRAIN_SEED, NUM_TOKENIZER_DOCUMENTS))
    config = replace(MODEL, vocab_size=tokenizer.get_vocab_size())
    trained = train(config, schedule, tokenizer)
    loss = held_out_loss(config, rounded(trained.params), tokenizer, trained.num_documents, NUM_HELD_OUT)
    given.out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, given.out)
    save_checkpoint(given.out, config, trained.params, model_card(config, schedule, trained, loss))
    print(f"{len(trained.losses)} steps, held-out loss {loss:.3f} nats a token, written to {given.out}")


if __name__ == "__main__":
    main()
