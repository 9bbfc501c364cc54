"""The commands of `marlin`, and how every error becomes one line and an exit code."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from marlin.cli import look, measure, text
from marlin.cli.options import version_option

FAILED: Final = 1
USAGE: Final = 2
MODEL: Final = 3
DEVICE: Final = 4
INTERRUPTED: Final = 130

# typer may carry a click of its own: its classes are reached through what typer exports.
UsageError: Final[type[Any]] = typer.BadParameter.__mro__[1]


@dataclass
class Invocation:
    """What was asked for: the arguments of this process, and whether --debug is among them."""

    argv: list[str]
    debug: bool = False

    @property
    def command(self) -> str:
        """The command as it can be pasted into a shell."""
        return shlex.join(["marlin", *self.argv])


class Group(TyperGroup):
    """A typer group that ends with Marlin's exit codes, and with one line for an error."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        invocation = Invocation(list(sys.argv[1:] if args is None else args))
        for stream in (sys.stdout, sys.stderr):
            # A terminal that cannot show a character must not end the program.
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            try:
                code = super().main(
                    invocation.argv,
                    "marlin",
                    complete_var,
                    False,
                    windows_expand_args,
                    obj=invocation,
                    **extra,
                )
            except SystemExit as error:  # of shell completion, or the reader of our output went away
                if error.code == FAILED:
                    _forget_stdout()
                raise
            except BaseException as error:
                code = _tell(error, invocation)
        sys.exit(code or 0)


app = typer.Typer(
    name="marlin",
    cls=Group,
    help="Quantized language models on any Vulkan GPU.",
    epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 model refused, 4 device, 130 interrupted.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _root(ctx: typer.Context, version: Annotated[bool, version_option] = False) -> None:
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())
        raise typer.Exit(USAGE)


for _command in (
    text.run,
    text.chat,
    measure.bench,
    measure.perplexity,
    look.inspect,
    look.plan,
    look.devices,
    look.doctor,
):
    app.command()(_command)


def _tell(error: BaseException, invocation: Invocation) -> int:
    """Print an error as one line (all of it with --debug) and give the exit code."""
    code, line = _verdict(error)
    if invocation.debug:
        traceback.print_exception(error)
    if line:
        print(f"marlin: {line}", file=sys.stderr)
    return code


def _verdict(error: BaseException) -> tuple[int, str]:
    """The exit code of an error and its line, "" where there is nothing to say."""
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED, ""
    if isinstance(error, UsageError):
        path = error.ctx.command_path if error.ctx is not None else "marlin"
        return USAGE, f"{error.format_message()} (see {path} --help)"
    if isinstance(error, ImportError):
        return FAILED, f"{error.msg}: reinstall marlin, or install what is missing"
    from marlin import errors

    said = str(error).strip()
    line = said.splitlines()[0] if said else type(error).__name__
    if isinstance(error, errors.DeviceOutOfMemory):
        return DEVICE, f"{line} (marlin plan MODEL shows the parts)"
    if isinstance(error, errors.DeviceError):
        return DEVICE, line
    if isinstance(error, errors.ModelFormatError | errors.UnsupportedModelError):
        return MODEL, line
    if isinstance(error, errors.MarlinError | OSError):
        return FAILED, line
    if isinstance(error, ValueError | TypeError):
        return USAGE, line
    return FAILED, f"{type(error).__name__}: {line} (--debug shows where)"


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    print(f"marlin: warning: {message}", file=sys.stderr)


def _forget_stdout() -> None:
    """After a reader went away, writing what is still buffered would raise again at exit."""
    with contextlib.suppress(OSError, ValueError):  # not a real file, as in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
