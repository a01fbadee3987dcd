"""The command and its verbs; each verb's module is imported when it is called, so that `validate` loads neither Arrow nor Beam."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")  # looking for plugins costs 60 ms, and none is used

import click

from beam_pipelines.errors import BeamPipelinesError, SpecError, nearest

VERBS = {
    "init": "beam_pipelines.cli.init:init",
    "validate": "beam_pipelines.cli.validate:validate",
    "preview": "beam_pipelines.cli.preview:preview",
    "test": "beam_pipelines.cli.test:test",
    "doctor": "beam_pipelines.cli.doctor:doctor",
    "run": "beam_pipelines.cli.run:run",
    "upgrade": "beam_pipelines.cli.upgrade:upgrade",
    "status": "beam_pipelines.cli.status:status",
    "backfill": "beam_pipelines.cli.backfill:backfill",
    "replay": "beam_pipelines.cli.replay:replay",
    "query": "beam_pipelines.cli.query:query",
    "runs": "beam_pipelines.cli.query:runs",
    "dlq": "beam_pipelines.cli.dlq:dlq",
    "serve": "beam_pipelines.cli.serve:serve",
    "verify": "beam_pipelines.cli.verify:verify",
    "report": "beam_pipelines.cli.report:report",
    "compact": "beam_pipelines.cli.compact:compact",
    "cluster": "beam_pipelines.cli.cluster:cluster",
    "template": "beam_pipelines.cli.template:template",
    "plan": "beam_pipelines.cli.plan:plan",
    "schema": "beam_pipelines.cli.validate:schema",
}
"""In the order a user meets them."""

GOOD, FAILED, WRONG = 0, 1, 2
_COMPLETION = "_BEAM_PIPELINES_COMPLETE"


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            ctx.fail(f"unknown verb '{args[0]}'; {nearest(args[0], VERBS)}")
        return super().resolve_command(ctx, args)


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from beam_pipelines import __version__

        click.echo(f"beam-pipelines {__version__}")
        ctx.exit()


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--version", is_flag=True, callback=_print_version, expose_value=False, is_eager=True, help="Print the version and exit.")
def command() -> None:
    """One data pipeline as batch and stream: a spec in YAML, run on Apache Beam.

    Exit codes: 0 good; 1 the run failed or a threshold was passed; 2 the spec or the call is wrong.
    """


def main(args: list[str] | None = None) -> NoReturn:
    """Runs the command and ends the process with its exit code; errors are one clear text on stderr."""
    given = sys.argv[1:] if args is None else args
    if given[:1] != ["test"]:
        gc.disable()  # a start makes modules, models and a graph that all stay: looking for garbage in them costs a third of it
    leave(run_command(command, given))


def leave(code: int) -> NoReturn:
    """Ends the process with `code`. Python would look for garbage among all it holds, twice, before it lets go of it: 0.4 CPU s with Beam loaded.

    Where `doctor` has left a check behind, it ends at once: a thread that comes back from C++ to a Python that has ended aborts the process.
    """
    gc.freeze()
    findings = sys.modules.get("beam_pipelines.runners.findings")
    if findings is not None and findings.left_behind():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def run_command(what: click.Command, args: list[str] | None = None, *, prog_name: str = "beam-pipelines") -> int:
    """Runs a click command and gives its exit code: no exception leaves it, and no traceback is shown unless logs are at `debug`."""
    with _signals() as received:
        try:
            return _invoke(what, sys.argv[1:] if args is None else args, prog_name)
        except (KeyboardInterrupt, click.Abort) as error:
            return _interrupted(received, str(error))
        except click.ClickException as error:
            error.show()
            return WRONG
        except click.exceptions.Exit as ended:
            return ended.exit_code
        except BrokenPipeError:  # the reader went away (| head): nothing to say
            forget_stdout()
            return GOOD
        except BeamPipelinesError as error:
            _say(f"error: {error}")
            _show_trace()
            return WRONG if isinstance(error, SpecError) else FAILED
        except Exception as error:  # a bug, or a surprise of the world: still one sentence
            if received:  # what a library made of the interruption
                return _interrupted(received, "")
            _say(f"error: {_sentence(error)}")
            if not _show_trace():
                _say("This is unexpected; --log-level debug shows where it happened.")
            return FAILED


def _interrupted(received: list[int], sentence: str) -> int:
    number = received[0] if received else int(signal.SIGINT)
    word = "terminated" if number == signal.SIGTERM else "interrupted"
    _say(f"{word}: {sentence}" if sentence else f"{word}.")
    return 128 + number


def _invoke(what: click.Command, args: list[str], prog_name: str) -> int:
    if _COMPLETION in os.environ:
        what.main(args=args, prog_name=prog_name)
    with what.make_context(prog_name, list(args)) as context:
        result = what.invoke(context)
    sys.stdout.flush()
    return result if isinstance(result, int) else GOOD


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM interrupts as Ctrl-C does; the list then holds the signals' numbers."""
    received: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(ValueError):  # not the main thread: whoever called us deals with signals
            before[number] = signal.signal(number, interrupt)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _sentence(error: Exception) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):
        click.echo(text, err=True)


def _show_trace() -> bool:
    """Shows the traceback where logs are at `debug`; whether it did."""
    logging = sys.modules.get("logging")
    if logging is None or not logging.getLogger().isEnabledFor(logging.DEBUG):
        return False
    import traceback

    traceback.print_exc()
    return True


def forget_stdout() -> None:
    """Lets Python's last flush go nowhere instead of complaining."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
