"""`jaxserve bench`: its commands and their flags. What measures is loaded when a command really starts."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from jaxserve.bench.flags import DatasetArgs, LatencyArgs, MultihostArgs, ServeArgs, StartupArgs, ThroughputArgs
from jaxserve.cli_flags import EPILOG, Parser, UsageError, add_flags, build, gather
from jaxserve.core.config import EngineArgs

EXIT_USAGE = 2


def latency(argv: Sequence[str], **lent: Any) -> int:
    """Time one batch of equal requests from its start to its last token."""
    values = _values("latency", latency, argv, LatencyArgs, EngineArgs)
    from jaxserve.bench.latency import run

    return run(build(LatencyArgs, values), engine_values(values), argv, **lent)


def throughput(argv: Sequence[str], **lent: Any) -> int:
    """Complete a dataset offline: requests and tokens a second."""
    values = _values("throughput", throughput, argv, ThroughputArgs, DatasetArgs, EngineArgs)
    from jaxserve.bench.throughput import run

    return run(build(ThroughputArgs, values), build(DatasetArgs, values), engine_values(values), argv, **lent)


def serve(argv: Sequence[str]) -> int:
    """Put load on a running OpenAI-compatible server: TTFT, TPOT, ITL, E2EL, throughput, goodput."""
    values = _values("serve", serve, argv, ServeArgs, DatasetArgs)
    from jaxserve.bench.serve import run

    return run(build(ServeArgs, values), build(DatasetArgs, values), argv)


def startup(argv: Sequence[str]) -> int:
    """Time fresh processes to their first token, with an empty and with a filled cache of compiled steps."""
    values = _values("startup", startup, argv, StartupArgs, EngineArgs)
    from jaxserve.bench.startup import run

    return run(build(StartupArgs, values), engine_values(values), argv)


def multihost(argv: Sequence[str]) -> int:
    """Time a model's steps over ever more devices, of one host or several, or predict them (--simulate)."""
    values = _values("multihost", multihost, argv, MultihostArgs, EngineArgs)
    from jaxserve.bench.multihost import run

    return run(build(MultihostArgs, values), build(EngineArgs, values), argv)


def kernels(argv: Sequence[str]) -> int:
    """Check and time kernels by themselves, beside the device's own copy and matrix rates."""
    from jaxserve.bench.kernels import main

    main(argv, prog="jaxserve bench kernels")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "latency": latency,
    "throughput": throughput,
    "serve": serve,
    "startup": startup,
    "multihost": multihost,
    "kernels": kernels,
}


def run(argv: Sequence[str]) -> int:
    """Run the command that argv begins with; the exit code. Raises ConfigError where it is not as asked."""
    if argv and argv[0] in COMMANDS:
        return COMMANDS[argv[0]](argv[1:])
    parser = Parser(
        prog="jaxserve bench",
        description="Measure an engine or a server.",
        epilog="jaxserve bench COMMAND --help lists a command's flags.",
        allow_abbrev=False,
    )
    choices = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        choices.add_parser(name, help=command.__doc__)
    if not argv or argv[0] in ("-h", "--help"):
        parser.print_help()
        return 0 if argv else EXIT_USAGE
    raise UsageError(f"no benchmark {argv[0]!r}; there are {', '.join(COMMANDS)} (try: jaxserve bench --help)")


def engine_values(values: dict[str, Any]) -> dict[str, Any]:
    """What was said about the engine, by field name: unset fields stay away, so that a benchmark may choose them."""
    names = EngineArgs.__dataclass_fields__
    return {name: value for name, value in values.items() if name in names}


def _values(name: str, command: Callable[..., int], argv: Sequence[str], *kinds: type) -> dict[str, Any]:
    parser = Parser(prog=f"jaxserve bench {name}", description=command.__doc__, epilog=EPILOG, allow_abbrev=False)
    add_flags(parser, *kinds)
    return gather(parser.parse(argv), *kinds)


def say(line: str) -> None:
    """A line for the person who waits; standard output is for results."""
    print(line, file=sys.stderr, flush=True)
