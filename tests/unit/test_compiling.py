"""Programs are made in order, in threads: what is needed is waited for, what fails later is left out."""

import threading

import jax
import jax.numpy as jnp
import pytest

from jaxserve.batch.buckets import Bucket, make_grid
from jaxserve.runner.compile_cache import CompileCounter
from jaxserve.runner.compiling import ProgramMaker, compile_program
from jaxserve.runner.programs import SMALL, Program, names_of
from jaxserve.runner.steps import Steps

WAIT_S = 30


def program(name: str, function=lambda x: x + 1) -> Program:
    spec = jax.ShapeDtypeStruct((3,), jnp.float32)
    return Program(name, lambda: jax.jit(function).lower(spec), (spec,), spec)


def broken(x):
    raise ValueError("no such kernel")


def programs_of_grid(grid, halves=False) -> list[Program]:
    names = dict.fromkeys(name for bucket in reversed(grid.all) for name in names_of(bucket, halves=halves))
    return [program(name) for name in (*names, *SMALL)]


def quiet(done: int, needed: int) -> None:
    pass


def test_needed_programs_are_waited_for_and_counted():
    made, lines = {}, []
    maker = ProgramMaker([program(str(i)) for i in range(5)], 5, compile_program, lambda p, c: made.update({p.name: c}))
    maker.start()
    maker.wait(lambda done, needed: lines.append((done, needed)))
    assert set(made) == set("01234") and lines[-1] == (5, 5) and lines == sorted(lines)
    assert made["0"](jnp.zeros(3)).tolist() == [1, 1, 1]
    assert maker.num_pending == 0
    maker.join()


def test_the_error_of_a_needed_program_is_raised_and_ends_the_work():
    made = []
    programs = [program("bad", broken), *(program(str(i)) for i in range(50))]
    maker = ProgramMaker(programs, len(programs), compile_program, lambda p, c: made.append(p.name))
    maker.start()
    with pytest.raises(ValueError, match="no such kernel"):
        maker.wait(quiet)
    maker.join()
    assert len(made) < 50


def test_a_late_program_that_fails_is_logged_and_left_out(caplog):
    made = []
    programs = [program("first"), program("bad", broken), program("last")]
    maker = ProgramMaker(programs, 1, compile_program, lambda p, c: made.append(p.name))
    maker.start()
    maker.wait(quiet)
    maker.join()
    assert set(made) == {"first", "last"} and maker.failed == ["bad"] and maker.num_pending == 0
    assert "bad could not be compiled and is not used: no such kernel" in caplog.text


def test_stop_begins_no_further_program():
    begun, go = threading.Event(), threading.Event()
    made = []

    def make(one: Program):
        if one.name != "first":
            begun.set()
            assert go.wait(WAIT_S)
        return one

    maker = ProgramMaker([program(name) for name in ("first", *"abcdefgh")], 1, make, lambda p, c: made.append(p.name))
    maker.start()
    maker.wait(quiet)
    assert begun.wait(WAIT_S) and maker.num_pending > 0
    maker.stop()
    assert maker.num_pending == 0
    go.set()
    maker.join()
    assert len(made) < 9


def test_what_the_threads_compile_is_counted_apart():
    counter = CompileCounter()
    maker = ProgramMaker([program("x", lambda x: jnp.cos(x) * 7)], 1, compile_program, lambda p, c: None)
    maker.start()
    maker.wait(quiet)
    assert counter.in_threads == 1 and counter.count == 0
    jax.jit(lambda x: jnp.cos(x) * 5)(jnp.float32(1))
    assert counter.in_threads == 1 and counter.count > 0


@pytest.mark.parametrize("halves", [False, True])
def test_the_first_programs_hold_every_step_and_later_ones_come_whole(halves):
    grid = make_grid(8, 64)
    steps, programs = Steps(grid, halves=halves), programs_of_grid(grid, halves)
    first = steps.first_needed(programs)
    for one in first:
        steps.add(one, one.name)
    assert steps.ready.decode == (Bucket(8, 8),) and grid.mixed[-1] in steps.ready.mixed
    whole = {
        (rows, tokens): grid.pick(rows, tokens) for tokens in range(1, 65) for rows in range(1, min(tokens, 8) + 1)
    }
    for rows, tokens in whole:
        picked = steps.pick(rows, tokens)
        assert picked.num_rows >= rows and picked.num_tokens >= tokens
    for one in programs:
        if one not in first:
            before = steps.ready
            steps.add(one, one.name)
            assert set(before.all) <= set(steps.ready.all)
            for bucket in steps.ready.all:
                assert steps[bucket] is not None
    assert steps.ready == grid
    assert {key: steps.pick(*key) for key in whole} == whole
