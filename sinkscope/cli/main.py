"""The ``sinkscope`` command: its group of commands, and how a failure ends.

Exit codes: 0 done, 1 a run or a check that failed, 2 wrong use or bad input, 130 interrupted. Every error is one line
on stderr that starts with ``sinkscope: error:``.
"""

import contextlib
import difflib
import errno
import importlib
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sinkscope import __version__
from sinkscope.cli.interrupts import Interrupts
from sinkscope.cli.output import note, open_closed_streams, shortened, silence
from sinkscope.errors import FULL_DISK, DiskError, SinkscopeError, is_out_of_memory
from sinkscope.processes import first_to_fail, this_process

if TYPE_CHECKING:
    from sinkscope.cli.events import EventLog

FAILED, WRONG_USE, INTERRUPTED = 1, 2, 130

# Of Python, whose threads take memory of their own, and of extensions that do not tell why they failed.
MEMORY_WORDS = ("can't start new thread", "without exception set")
MEMORY_ADVICE = "out of memory; load the model with --dtype bfloat16, or choose another --device"

COMMANDS = {
    "profile": "sinkscope.cli.profile",
    "apply": "sinkscope.cli.apply",
    "predict": "sinkscope.cli.predict",
    "inspect": "sinkscope.cli.inspect",
    "info": "sinkscope.cli.info",
    "merge": "sinkscope.cli.merge",
    "discover": "sinkscope.cli.discover",
    "registry": "sinkscope.cli.registry",
    "serve": "sinkscope.cli.serve",
    "demo": "sinkscope.cli.demo",
}


@dataclass
class Session:
    """What outlives the commands of one call.

    Attributes
    ----------
    arguments : tuple of str
        The command line.
    debug : bool
        Whether to show the traceback of an error.
    run : Path or None
        The run file at work, which an interrupted command leaves behind to be resumed.
    events : EventLog or None
        Told about the end of the command, whatever it is.
    interrupts : Interrupts
        Knows whether a signal has come.
    """

    arguments: tuple[str, ...] = ()
    debug: bool = False
    run: Path | None = None
    events: "EventLog | None" = None
    interrupts: Interrupts = field(default_factory=Interrupts)

    def interrupted(self) -> str:
        """What to say when the user stops the command."""
        if self.run is None or not self.run.exists():
            return "interrupted; nothing was kept"
        again = [argument for argument in self.arguments if argument != "--resume"]
        command = shlex.join([*this_process().launcher(), *again, "--resume"])
        return f"interrupted; {self.run} keeps what was measured, go on with `{command}`"

    def told(self, error: SinkscopeError) -> str:
        """What to say of an error: also how to go on, where the disk failed after something was measured."""
        message = str(error)
        if isinstance(error, DiskError) and "--resume" not in message and self.run is not None and self.run.exists():
            message += f"; {self.run} keeps what was measured, go on with it: --resume"
        return message


class _Interrupted(Exception):
    """Stands for KeyboardInterrupt on its way through click, which would add a blank line to it."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is looked up."""

    def __init__(self, *args: Any, modules: dict[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.modules:
            return None
        command = importlib.import_module(self.modules[cmd_name]).command
        if not isinstance(command, click.Command):
            raise TypeError(f"{self.modules[cmd_name]}.command is not a click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.modules:
            close = difflib.get_close_matches(args[0], self.modules, n=1)
            guess = f"; did you mean {close[0]}?" if close else f"; there are {', '.join(self.modules)}"
            ctx.fail(f"no command {args[0]!r}{guess}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise _Interrupted from error


@click.group(
    cls=LazyGroup,
    modules=COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Run `sinkscope COMMAND --help` for the options and examples of a command. To see everything on two small "
    "real models: sinkscope demo.",
)
@click.version_option(__version__, prog_name="sinkscope", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Find the attention-sink dimensions of any decoder LLM or LMM, and redistribute their attention.

    MODEL is a hub id, a local folder, a .gguf file, demo:llm or demo:lmm.
    """
    session: Session = ctx.ensure_object(Session)
    session.debug = session.debug or debug
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(arguments: Sequence[str], interrupts: Interrupts | None = None) -> int:
    """Run the command line `arguments` and return the exit code, whatever happens."""
    session = Session(tuple(arguments), interrupts=interrupts or Interrupts())
    code = _run(session)
    if session.events is not None and code == 0:
        session.events.finished()
    return code


def _run(session: Session) -> int:
    arguments = session.arguments
    try:
        outcome = cli.main(list(arguments), prog_name="sinkscope", standalone_mode=False, obj=session)
        sys.stdout.flush()
        return outcome if isinstance(outcome, int) else 0
    except SinkscopeError as error:
        return _fail(session, error, session.told(error), error.exit_code)
    except click.UsageError as error:
        context = error.ctx.command_path if error.ctx is not None else "sinkscope"
        return _fail(session, error, f"{error.format_message()} (see `{context} --help`)", WRONG_USE)
    except click.ClickException as error:
        return _fail(session, error, error.format_message(), WRONG_USE)
    except (_Interrupted, click.Abort, KeyboardInterrupt) as error:
        return _fail(session, error, session.interrupted(), INTERRUPTED)
    except BrokenPipeError:
        return _reader_left()
    except SystemExit as error:  # click ends this way when the reader of a pipe goes away.
        return _reader_left() if not isinstance(error.code, int) or error.code == FAILED else error.code
    except Exception as error:
        if _lacks_memory(error):
            return _fail(session, error, MEMORY_ADVICE, FAILED)
        if isinstance(error, OSError) and error.errno in FULL_DISK:
            silence(sys.stdout)
            where = f" for {error.filename}" if error.filename else ""
            return _fail(session, error, session.told(DiskError(f"no space is left{where}; free space there")), FAILED)
        # The last resort: whatever it is, a person gets one line and the way to see more.
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        hint = "" if session.debug else "; `sinkscope --debug ...` shows where"
        return _fail(session, error, f"unexpected {reason}{hint}", FAILED)


def main() -> None:
    """Entry point of the console script."""
    open_closed_streams()
    if not sys.stderr.isatty():
        # Bars of other libraries fill a log with hundreds of copies of themselves. Read when tqdm is first imported.
        os.environ.setdefault("TQDM_DISABLE", "1")
    # transformers imports torchao where it is installed, which then tells what this build of torch lacks for it.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Schedulers stop a command by SIGTERM, and torchrun where another process has failed: as with ctrl-C, it says how
    # to go on.
    interrupts = Interrupts()
    interrupts.install()
    code = run(sys.argv[1:], interrupts)
    interrupts.ignore()
    if code == INTERRUPTED:
        # After an interrupt in an `exec`, with which classes are made, `python -m` would end by the signal instead.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _lacks_memory(error: Exception) -> bool:
    """Whether memory ran out, also outside of PyTorch."""
    words = isinstance(error, (RuntimeError, SystemError)) and any(part in str(error) for part in MEMORY_WORDS)
    system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return is_out_of_memory(error) or words or system


def _fail(session: Session, error: BaseException, message: str, code: int) -> int:
    if session.interrupts.number is not None:
        # Whatever an interrupt has become on its way, such as a RuntimeError of what it came upon.
        message, code = session.interrupted(), INTERRUPTED
    if session.debug:
        traceback.print_exception(error)
    message = shortened(" ".join(message.split()))
    if session.events is not None:
        kind = "Interrupted" if code == INTERRUPTED else type(error).__name__
        session.events.failed(kind, message, code, resumable=session.run is not None and session.run.exists())
    if first_to_fail():
        note(f"sinkscope: error: {message}")
    return code


def _reader_left() -> int:
    """Whoever read our output has enough of it (``| head``): not an error, and nothing more can be said there."""
    silence(sys.stdout)
    return 0
