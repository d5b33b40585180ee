"""What a group's processes say to each other: CURVE-encrypted sockets that only the group's own keys may use.

Every rank makes a key pair and learns the others' public keys where JAX's processes meet (`sharding.multihost.share`):
no secret ever travels. Beside the decisions go signs of life, from threads of their own, so that a rank that waits for
its device is not taken for dead, and one that is dead is missed even if everybody else waits for its device.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import zmq
from zmq.auth.thread import ThreadAuthenticator

from jaxserve.core.errors import ConfigError, EngineDead
from jaxserve.engine.group_messages import Beat, Failure, FromFollower, FromLeader, Hello, Leave
from jaxserve.engine.ranks import host_port
from jaxserve.engine.transcript import Transcript

BEAT_S = 0.5
SILENCE_S = 5.0  # without a beat: longer than any pause of the interpreter, short enough for those who wait
LINGER_MS = 1000
KEY_BYTES = 40  # of a public key, as text
_TICK_MS = 100

OnLoss = Callable[[str], None]


def make_keys() -> tuple[bytes, bytes]:
    """(public, secret), new."""
    return zmq.curve_keypair()


def own_address(address: str) -> str:
    """The number of this host's address, to listen on. Raises ConfigError where the name means nothing."""
    try:
        return str(socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise ConfigError(f"master_addr={address!r} is not known on this host: {error}.") from error


def endpoint(address: str, port: int) -> str:
    return f"tcp://{host_port(address, port)}"


class _Allowed:
    """Who may connect: the followers' keys."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = set(keys)

    def callback(self, domain: str, key: bytes) -> bool:
        return key in self._keys


class LeaderChannel:
    """Rank 0's end. The loop's thread sends; a thread of its own hears the followers and compares their digests.

    follower_keys: of ranks 1, 2, …. on_loss: called once, from that thread, with the reason why the group is at its
    end: a rank that fell silent, said it failed, or replayed something else.
    """

    def __init__(
        self,
        address: str,
        port: int,
        keys: tuple[bytes, bytes],
        follower_keys: Sequence[bytes],
        transcript: Transcript,
        on_loss: OnLoss,
    ) -> None:
        self._transcript, self._on_loss = transcript, on_loss
        self._ranks = range(1, len(follower_keys) + 1)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromFollower)
        self._context: zmq.Context[Any] = zmq.Context()
        self._guard = ThreadAuthenticator(self._context)
        self._guard.start()
        self._guard.configure_curve_callback("*", _Allowed(follower_keys))
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.set_hwm(0)
        self._socket.linger = LINGER_MS
        self._socket.ipv6 = ":" in address
        self._socket.curve_publickey, self._socket.curve_secretkey = keys
        self._socket.curve_server = True
        try:
            self._socket.bind(endpoint(address, port))
        except zmq.ZMQError as error:
            self._socket.close()
            self._guard.stop()
            self._context.term()
            raise ConfigError(
                f"master_addr={address}, port {port}: cannot listen there ({error}). It must be an address of rank 0's "
                f"host, and master_port and the port after it must be free."
            ) from error
        self._lock = threading.Lock()  # a socket is used by one thread at a time
        self._hellos: dict[int, Hello] = {}
        self._heard_s = dict.fromkeys(self._ranks, time.monotonic())
        self._met = threading.Event()
        self._stop = threading.Event()
        self._loss: str | None = None
        self._thread = threading.Thread(target=self._listen, name="jaxserve-group", daemon=True)
        self._thread.start()

    def meet(self, timeout_s: float) -> dict[int, Hello]:
        """Every follower's first word, by rank. Raises EngineDead where one does not come."""
        self._met.wait(timeout_s)
        if self._loss is not None:
            raise EngineDead(self._loss)
        missing = [rank for rank in self._ranks if rank not in self._hellos]
        if missing:
            raise EngineDead(f"ranks {missing} did not come within {timeout_s:.0f} s")
        return dict(self._hellos)

    def encode(self, message: FromLeader) -> bytes:
        return self._encoder.encode(message)

    def send(self, frame: bytes) -> None:
        """An encoded message to every follower, in order."""
        with self._lock:
            for rank in self._ranks:
                self._socket.send_multipart([b"steps-%d" % rank, frame])

    def close(self, reason: str | None = None) -> None:
        """Send everybody away, in peace where there is no reason."""
        if self._stop.is_set():
            return
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self.send(self._encoder.encode(Leave(reason)))
        self._socket.close()
        self._guard.stop()
        self._context.term()

    def abandon(self, reason: str) -> None:
        """From `on_loss`: tell the followers why, as far as they still hear."""
        self.send(self._encoder.encode(Leave(reason)))

    def _listen(self) -> None:
        beat, beaten_s = msgspec.msgpack.encode(Beat()), 0.0
        while not self._stop.wait(_TICK_MS / 1000):
            with self._lock:
                frames = self._arrived()
                if time.monotonic() - beaten_s >= BEAT_S:
                    beaten_s = time.monotonic()
                    for rank in self._ranks:
                        self._socket.send_multipart([b"beats-%d" % rank, beat])
            self._loss = self._judge(frames) or self._silence()
            if self._loss is not None:
                self._met.set()
                self._on_loss(self._loss)
                return

    def _arrived(self) -> list[list[bytes]]:
        frames: list[list[bytes]] = []
        while self._socket.poll(0):
            frames.append(self._socket.recv_multipart())
        return frames

    def _judge(self, frames: list[list[bytes]]) -> str | None:
        """Take note of what followers said; why the group must end, if it must."""
        for name, frame in frames:
            rank = int(name.rpartition(b"-")[2])
            self._heard_s[rank] = time.monotonic()
            message: FromFollower = self._decoder.decode(frame)
            match message:
                case Hello() as hello:
                    self._hellos[rank] = hello
                    if len(self._hellos) == len(self._ranks):
                        self._met.set()
                case Failure(reason=reason):
                    return f"rank {rank} failed: {reason}"
                case Beat(num_steps=num_steps, digest=digest):
                    # One ahead of us has had the order to read a step that we are still reading.
                    ours = self._transcript.at(num_steps)
                    if ours is not None and ours != digest:
                        return f"rank {rank} disagrees: after {num_steps} steps it has other decisions or tokens"
        return None

    def _silence(self) -> str | None:
        if not self._met.is_set():
            return None  # `meet` has its own patience
        for rank, heard_s in self._heard_s.items():
            if time.monotonic() - heard_s > SILENCE_S:
                return f"rank {rank} fell silent for {SILENCE_S:.0f} s"
        return None


class FollowerChannel:
    """A follower's end: the main thread receives, a thread of its own beats and misses the leader.

    on_loss: called once, from that thread, when the leader fell silent.
    """

    def __init__(
        self,
        address: str,
        port: int,
        rank: int,
        keys: tuple[bytes, bytes],
        leader_key: bytes,
        transcript: Transcript,
        on_loss: OnLoss,
    ) -> None:
        self._transcript, self._on_loss = transcript, on_loss
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(FromLeader)
        self._context: zmq.Context[Any] = zmq.Context()
        self._steps, self._beats = (self._context.socket(zmq.DEALER) for _ in range(2))
        for one, name in ((self._steps, b"steps-%d"), (self._beats, b"beats-%d")):
            one.set_hwm(0)
            one.linger = LINGER_MS
            one.ipv6 = ":" in address
            one.routing_id = name % rank
            one.curve_publickey, one.curve_secretkey = keys
            one.curve_serverkey = leader_key
            one.connect(endpoint(address, port))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="jaxserve-group", daemon=True)
        self._thread.start()

    def send(self, message: FromFollower) -> None:
        with contextlib.suppress(zmq.Again):
            self._steps.send(self._encoder.encode(message), zmq.NOBLOCK)

    def receive(self) -> tuple[FromLeader, bytes]:
        """The leader's next message, and as it travelled."""
        frame = self._steps.recv()
        return self._decoder.decode(frame), frame

    def close(self) -> None:
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._steps.close()
        self._beats.close()
        self._context.term()

    def _beat(self) -> None:
        encoder = msgspec.msgpack.Encoder()
        heard_s, beaten_s = time.monotonic(), 0.0
        while not self._stop.is_set():
            now_s = time.monotonic()
            if now_s - beaten_s >= BEAT_S:
                beaten_s = now_s
                with contextlib.suppress(zmq.Again):  # where the leader refuses us, there is nowhere to send to
                    self._beats.send(encoder.encode(Beat(*self._transcript.latest)), zmq.NOBLOCK)
            if self._beats.poll(_TICK_MS):
                self._beats.recv()
                heard_s = time.monotonic()
            elif time.monotonic() - heard_s > SILENCE_S:
                self._on_loss(f"rank 0 fell silent for {SILENCE_S:.0f} s")
                return
