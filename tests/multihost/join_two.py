"""One of two processes: `join_two.py PORT RANK`. Joins, shares a value, computes over both, and leaves."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from sharding import multihost
from sharding.axes import TENSOR
from sharding.mesh import MeshShape, make_mesh
from sharding.placement import place


def main(port: int, rank: int) -> None:
    address = f"127.0.0.1:{port}"
    multihost.join(address, 2, rank, bind=address, timeout_s=60)
    shared = multihost.share(b"rank %d" % rank)
    mesh = make_mesh(MeshShape(tensor=2), jax.devices())
    made: list[int] = []

    def make(number: int) -> np.ndarray:
        made.append(number)
        return np.full(3, number + 1, np.float32)

    shards = place(mesh, PartitionSpec(TENSOR), (3,), make)
    total = jax.jit(jnp.sum, out_shardings=jax.NamedSharding(mesh, PartitionSpec()))(shards)
    print(shared, made, float(total.addressable_data(0)), jax.process_count())
    multihost.leave()


main(int(sys.argv[1]), int(sys.argv[2]))
