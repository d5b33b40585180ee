"""Two real processes as one JAX."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_two_processes_join_share_and_make_their_own_shards():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("join_two.py")), str(port), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=90) for rank in ranks]
    for number, (out, error) in enumerate(said):
        assert out.splitlines()[-1:] == [f"[b'rank 0', b'rank 1'] [{number}] 9.0 2"], error
        assert ranks[number].returncode == 0
