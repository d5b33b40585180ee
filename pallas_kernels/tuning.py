"""Measured choices of kernel shapes, per device."""

from dataclasses import dataclass

import jax


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """Shape of the decode kernel's launch.

    num_sms: multiprocessors of the device; workers_per_sm: warpgroups that share one;
    num_stages: tiles of keys and values that each keeps in flight.
    """

    num_sms: int
    workers_per_sm: int
    num_stages: int


def decode_config(*, head_dim: int) -> DecodeConfig:
    """On an H200 (2026-11-24, Llama-3-8B heads, pages of 64) two workers of two stages were the
    fastest of eight pairs tried at batch 32 x 4k and 256 x 1k. Wider heads fill the shared
    memory with one worker, narrower ones leave room for more stages."""
    if head_dim > 128:
        return DecodeConfig(_num_sms(), 1, 2)
    return DecodeConfig(_num_sms(), 2, 2 if head_dim > 64 else 4)


@dataclass(frozen=True, slots=True)
class PrefillConfig:
    """Shape of the prefill kernel's launch.

    num_sms: multiprocessors of the device, one worker each; num_stages: tiles of keys and values in flight.
    """

    num_sms: int
    num_stages: int


def prefill_config(*, head_dim: int) -> PrefillConfig:
    """Two stages of 128 keys fill the shared memory beside the queries; the narrowest heads leave room for more."""
    return PrefillConfig(_num_sms(), 4 if head_dim <= 64 else 2)


def most_workers() -> int:
    """Of any launch of the decode kernel on this device."""
    return 4 * _num_sms()


def _num_sms() -> int:
    """Of the first GPU; compiling without one takes a Hopper's."""
    return getattr(jax.devices()[0], "core_count", None) or 132
