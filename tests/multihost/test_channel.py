"""Leader and followers over real sockets: who is heard, who is refused, and what ends a group."""

import queue
import socket
import time

import pytest
import zmq

from jaxserve.core.errors import ConfigError, EngineDead
from jaxserve.core.params import SamplingParams
from jaxserve.core.step_result import RowResult
from jaxserve.engine.channel import SILENCE_S, FollowerChannel, LeaderChannel, make_keys
from jaxserve.engine.group_messages import Dispatch, Failure, Hello, Leave
from jaxserve.engine.transcript import Transcript
from jaxserve.schedule.output import RowStart, ScheduledRow, SchedulerOutput

HOST = "127.0.0.1"
WAIT_S = 30
HELLO = Hello({"dtype": "float32"}, 7)


class Group:
    """A leader and its followers in one process; `losses` gets (rank, reason)."""

    def __init__(self, num_followers: int = 1) -> None:
        with socket.create_server((HOST, 0)) as free:
            self.port = free.getsockname()[1]
        self.keys = [make_keys() for _ in range(num_followers + 1)]
        self.losses: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
        self.transcripts = [Transcript() for _ in self.keys]
        publics = [public for public, _ in self.keys]
        self.leader = LeaderChannel(
            HOST, self.port, self.keys[0], publics[1:], self.transcripts[0], lambda why: self.losses.put((0, why))
        )
        self.followers = [self.follower(rank) for rank in range(1, num_followers + 1)]

    def follower(self, rank: int, keys: tuple[bytes, bytes] | None = None) -> FollowerChannel:
        return FollowerChannel(
            HOST,
            self.port,
            rank,
            keys or self.keys[rank],
            self.keys[0][0],
            self.transcripts[rank],
            lambda why: self.losses.put((rank, why)),
        )

    def meet(self) -> dict[int, Hello]:
        for follower in self.followers:
            follower.send(HELLO)
        return self.leader.meet(WAIT_S)

    def close(self) -> None:
        for follower in self.followers:
            follower.close()
        self.leader.close()


@pytest.fixture
def make_group():
    groups: list[Group] = []

    def make(num_followers: int = 1) -> Group:
        groups.append(Group(num_followers))
        return groups[-1]

    yield make
    for group in groups:
        group.close()


def decision(step_id: int) -> SchedulerOutput:
    params = SamplingParams(temperature=0.7, seed=3, logit_bias={5: 1.5}, bad_words=["no"], bad_words_token_ids=[[4]])
    start = RowStart(0, "a", params, 2**64 - 1, [1, 2, 3], [])
    rows = [ScheduledRow("b", 1, 7, [-1], [4, 5], True, 3), ScheduledRow("a", 0, 0, [1, 2, 3], [0], True, 3, 2)]
    return SchedulerOutput(step_id, rows, [start], 4, ["c"])


def test_every_follower_gets_every_decision_whole_and_in_order(make_group):
    group = make_group(2)
    assert group.meet() == {1: HELLO, 2: HELLO}
    sent = [group.leader.encode(Dispatch(decision(step))) for step in range(50)]
    for frame in sent:
        group.leader.send(frame)
    for follower in group.followers:
        for step, frame in enumerate(sent):
            message, as_sent = follower.receive()
            assert message == Dispatch(decision(step)) and as_sent == frame
    group.leader.close("enough")
    assert [follower.receive()[0] for follower in group.followers] == [Leave("enough")] * 2
    assert group.losses.empty()


def test_a_stranger_is_not_heard(make_group):
    group = make_group()
    stranger = group.follower(1, make_keys())
    stranger.send(HELLO)
    plain = zmq.Context()
    socket = plain.socket(zmq.DEALER)
    socket.linger = 0
    socket.routing_id = b"steps-1"
    socket.connect(f"tcp://{HOST}:{group.port}")
    socket.send(b"\x81\xa4type\xa5Hello", zmq.NOBLOCK)
    with pytest.raises(EngineDead, match=r"ranks \[1\] did not come"):
        group.leader.meet(1.0)
    assert group.meet() == {1: HELLO}  # and the follower still is
    socket.close()
    plain.term()
    stranger.close()


def test_a_disagreement_ends_the_group(make_group):
    group = make_group(2)
    group.meet()
    for transcript in group.transcripts:
        transcript.decided(b"step 1")
        transcript.collected([RowResult("a", 17)])
    time.sleep(1.2)  # two beats: nobody complains of what is equal
    assert group.losses.empty()
    for rank, transcript in enumerate(group.transcripts):
        transcript.collected([RowResult("a", 18 if rank < 2 else 19)])
    rank, why = group.losses.get(timeout=WAIT_S)
    assert rank == 0 and why.startswith("rank 2 disagrees: after 2 steps")


def test_other_decisions_are_a_disagreement_too(make_group):
    group = make_group()
    group.meet()
    for transcript, frame in zip(group.transcripts, (b"x", b"y"), strict=True):
        transcript.decided(frame)
        transcript.collected([])
    assert "rank 1 disagrees" in group.losses.get(timeout=WAIT_S)[1]


def test_a_failure_ends_the_group_with_its_reason(make_group):
    group = make_group()
    group.meet()
    group.followers[0].send(Failure("no memory left"))
    assert group.losses.get(timeout=WAIT_S) == (0, "rank 1 failed: no memory left")


def test_silence_is_noticed_on_both_sides(make_group):
    group = make_group(2)
    group.meet()
    gone = group.followers.pop(0)
    gone.close()
    began_s = time.monotonic()
    assert group.losses.get(timeout=WAIT_S) == (0, f"rank 1 fell silent for {SILENCE_S:.0f} s")
    assert time.monotonic() - began_s > SILENCE_S - 1
    # The leader's listener has ended with it, so that rank 2 hears nothing any more.
    assert group.losses.get(timeout=WAIT_S) == (2, f"rank 0 fell silent for {SILENCE_S:.0f} s")


def test_a_port_in_use_is_refused(make_group):
    group = make_group()
    with pytest.raises(ConfigError, match="cannot listen there"):
        LeaderChannel(HOST, group.port, make_keys(), [make_keys()[0]], Transcript(), lambda why: None)
