"""The command line: `jaxserve serve`, `chat`, `generate`, `plan`, `compile`, `convert` and `bench`.

Nothing heavy is imported before a command really starts: --help answers at once.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxserve
from jaxserve.bench import commands
from jaxserve.cli_flags import EPILOG, Parser, UsageError, add_flags, build, gather
from jaxserve.core.config import EngineArgs, PlanArgs, arg
from jaxserve.core.errors import ConfigError, DoesNotFit, EngineError, JaxserveError, RequestError
from jaxserve.engine.ranks import ranks_of
from server.args import ServerArgs

if TYPE_CHECKING:
    from jaxserve.core.outputs import RequestOutput
    from jaxserve.core.params import SamplingParams
    from jaxserve.llm import LLM

EXIT_ENGINE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_MODEL_HELP = "checkpoint directory or hub id; the bundled demo model if left out"


@dataclass
class SampleArgs:
    """Sampling flags of `chat` and `generate`; unset ones take the model's defaults."""

    temperature: float | None = arg(None, "Randomness, 0 to 2; 0 always takes the likeliest token.", "sampling")
    top_p: float | None = arg(None, "Sample from the likeliest tokens that make up this share.", "sampling")
    top_k: int | None = arg(None, "Sample from this many likeliest tokens; 0 for all.", "sampling")
    min_p: float | None = arg(None, "Leave out tokens below this share of the likeliest one's probability.", "sampling")
    repetition_penalty: float | None = arg(None, "Over 1 discourages tokens that have occurred.", "sampling")
    max_tokens: int | None = arg(None, "Tokens of one answer at most; as many as fit if unset.", "sampling")


def serve(argv: Sequence[str]) -> int:
    """Serve a model over HTTP, OpenAI-compatible."""
    parser = _parser("serve", serve)
    parser.add_argument("model_tag", nargs="?", metavar="MODEL", help=_MODEL_HELP)
    add_flags(parser, EngineArgs, ServerArgs)
    given = parser.parse(argv)
    values = gather(given, EngineArgs, ServerArgs)
    engine_args, server_args = _engine_args(given["model_tag"], values), build(ServerArgs, values)
    _start_log(logging.INFO)
    ranks = ranks_of(engine_args)
    if ranks is not None and not ranks.is_leader:
        from jaxserve.engine.follower import follow

        return follow(engine_args, ranks, _say)
    from server.app import serve as serve_http

    return serve_http(engine_args, server_args, _say)


def chat(argv: Sequence[str]) -> int:
    """Talk with a model: a line is a message, Ctrl-D ends the conversation."""
    parser = _parser("chat", chat)
    parser.add_argument("model_tag", nargs="?", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument("--system", metavar="TEXT", help="system message the conversation begins with")
    add_flags(parser, SampleArgs, EngineArgs)
    given = parser.parse(argv)
    system = given["system"]
    messages = [{"role": "system", "content": system}] if system else []
    with _started(given["model_tag"], gather(given, SampleArgs, EngineArgs)) as (llm, params):
        for line in _lines(sys.stdin.isatty()):
            messages.append({"role": "user", "content": line})
            try:
                prompt = llm.render_chat(messages)
                answer = _print_stream(llm.stream(prompt, params, add_special_tokens=False))
            except RequestError as error:
                _say(f"jaxserve: {error}")
                messages.pop()
                continue
            messages.append({"role": "assistant", "content": answer})
    return 0


def generate(argv: Sequence[str]) -> int:
    """Continue one prompt and print the text as it comes."""
    parser = _parser("generate", generate)
    parser.add_argument(
        "words", nargs="+", metavar="[MODEL] PROMPT", help="the prompt, after the model if any; - reads standard input"
    )
    add_flags(parser, SampleArgs, EngineArgs)
    given = parser.parse(argv)
    words: list[str] = given["words"]
    if len(words) > 2:
        raise UsageError("generate takes a model and a prompt; put a prompt of several words in quotes")
    values = gather(given, SampleArgs, EngineArgs)
    prompt = sys.stdin.read() if words[-1] == "-" else words[-1]
    with _started(words[0] if len(words) == 2 else None, values) as (llm, params):
        _print_stream(llm.stream(prompt, params))
    return 0


def plan(argv: Sequence[str]) -> int:
    """Say, without a GPU or weights, whether a model fits a device and how fast it can be at most."""
    parser = _parser("plan", plan)
    parser.add_argument(
        "model_tag", nargs="?", metavar="MODEL", help="checkpoint directory, config.json or hub id; no weights needed"
    )
    add_flags(parser, PlanArgs, EngineArgs)
    given = parser.parse(argv)
    values = gather(given, PlanArgs, EngineArgs)
    plan_args, args = build(PlanArgs, values), _engine_args(given["model_tag"], values)
    _start_log(logging.WARNING)
    from jaxserve.plan import format_plan, make_plan

    try:
        found = make_plan(plan_args, args)
    except DoesNotFit as error:
        if plan_args.json:
            print(json.dumps({"fits": False, "error": str(error), "remedies": error.remedies}))
        return _fail(str(error), EXIT_ENGINE)
    print(json.dumps(found.to_dict()) if plan_args.json else format_plan(found))
    return 0


def compile(argv: Sequence[str]) -> int:
    """Compile a model's programs into a bundle that serve --bundle starts from."""
    parser = _parser("compile", compile)
    parser.add_argument("model_tag", nargs="?", metavar="MODEL", help=_MODEL_HELP)
    parser.add_argument("-o", "--output", metavar="BUNDLE", required=True, help="the file to write")
    add_flags(parser, EngineArgs)
    given = parser.parse(argv)
    args = _engine_args(given["model_tag"], gather(given, EngineArgs))
    _start_log(logging.WARNING)
    from jaxserve.compile_bundle import compile_bundle

    written = compile_bundle(args, Path(given["output"]), _say)
    print(f"{written.path}: {written.num_programs} programs, {written.num_bytes / 1e6:.1f} MB")
    print(f"fingerprint (serve --bundle-sha256): {written.fingerprint}")
    return 0


def convert(argv: Sequence[str]) -> int:
    """Write a model as a checkpoint of jaxserve's own layout, which loads onto any number of devices."""
    parser = _parser("convert", convert)
    parser.add_argument("model_tag", metavar="MODEL", help="checkpoint directory or hub id")
    parser.add_argument("output", metavar="OUT", help="the directory to make; it must not exist")
    parser.add_argument("--dtype", default="auto", help="float32, bfloat16 or float16; auto keeps the checkpoint's own")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the hub")
    given = parser.parse(argv)
    _start_log(logging.WARNING)
    import jax

    from jaxserve.convert import convert as convert_checkpoint

    jax.config.update("jax_platforms", "cpu")  # or a GPU's memory would be claimed for nothing
    written = convert_checkpoint(given["model_tag"], Path(given["output"]), given["dtype"], given.get("revision"), _say)
    print(f"{written.path}: {written.num_parameters} arrays of {written.dtype}, {written.num_bytes / 1e6:.1f} MB")
    return 0


def bench(argv: Sequence[str]) -> int:
    """Measure: latency, throughput, serve, startup, kernels."""
    _start_log(logging.WARNING)
    return commands.run(argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "serve": serve,
    "chat": chat,
    "generate": generate,
    "plan": plan,
    "compile": compile,
    "convert": convert,
    "bench": bench,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code.

    0 done; 1 the engine failed, or what was planned does not fit; 2 not as asked; 130 interrupted.
    """
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except (ConfigError, RequestError) as error:
        return _fail(str(error), EXIT_USAGE)
    except JaxserveError as error:
        return _fail(str(error), EXIT_ENGINE)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(argv: Sequence[str]) -> int:
    if argv and argv[0] in COMMANDS:
        try:
            return COMMANDS[argv[0]](argv[1:])
        except SystemExit as leaving:  # argparse, after --help; a benchmark, with its reason
            if isinstance(leaving.code, str):
                return _fail(leaving.code, EXIT_ENGINE)
            return leaving.code or 0
    parser = Parser(
        prog="jaxserve",
        description="Serve a Llama-family checkpoint with JAX: a server, a chat, a completion, benchmarks.",
        epilog="jaxserve COMMAND --help lists a command's flags.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    choices = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, command in COMMANDS.items():
        choices.add_parser(name, help=command.__doc__)
    if not argv or argv[0] in ("-h", "--help"):
        parser.print_help()
        return 0 if argv else EXIT_USAGE
    if argv[0] == "--version":
        print(f"jaxserve {jaxserve.__version__}")
        return 0
    raise UsageError(f"no command {argv[0]!r}; the commands are {', '.join(COMMANDS)} (try: jaxserve --help)")


def _parser(name: str, command: Callable[[Sequence[str]], int]) -> Parser:
    return Parser(prog=f"jaxserve {name}", description=command.__doc__, epilog=EPILOG, allow_abbrev=False)


def _fail(message: str, code: int) -> int:
    print(f"jaxserve: {message}", file=sys.stderr)
    return code


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _start_log(level: int) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("jaxserve", "server"):
        logging.getLogger(name).setLevel(level)


def _engine_args(model_tag: str | None, values: dict[str, Any]) -> EngineArgs:
    args = build(EngineArgs, values)
    if model_tag and args.model and args.model != model_tag:
        raise ConfigError(f"two models are named, {model_tag!r} and --model {args.model!r}; name one")
    return replace(args, model=model_tag or args.model)


@contextmanager
def _started(model_tag: str | None, values: dict[str, Any]) -> Generator[tuple["LLM", "SamplingParams"]]:
    """An engine for one user, and the parameters of each answer."""
    # One user: few shapes to compile, and no second process to start.
    small = {} if "bundle" in values else {"max_num_seqs": 1}
    args = _engine_args(model_tag, {"engine_process": False, **small, **values})
    sample = {name: value for name, value in asdict(build(SampleArgs, values)).items() if value is not None}
    _start_log(logging.WARNING)
    from jaxserve.llm import LLM

    with LLM(progress=_say, **asdict(args)) as llm:
        yield llm, replace(llm.get_default_sampling_params(), **{"max_tokens": None, **sample})


def _print_stream(outputs: Iterable["RequestOutput"]) -> str:
    """Print an answer as it grows; its text. Ctrl-C cuts it short. Raises EngineError where it failed."""
    text, error = "", None
    try:
        for output in outputs:
            whole, error = output.outputs[0].text, output.error
            print(whole[len(text) :], end="", flush=True)
            text = whole
    except KeyboardInterrupt:
        _say(" [cut short]")
    print(flush=True)
    if error is not None:
        raise EngineError(error)
    return text


def _lines(interactive: bool) -> Iterator[str]:
    """Messages from standard input until its end; empty ones are left out."""
    if interactive:
        _say("ready: type a message; Ctrl-D ends, Ctrl-C cuts an answer short")
    while True:
        if interactive:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


if __name__ == "__main__":
    sys.exit(main())
