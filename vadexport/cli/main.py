"""The `vadexport` command: finds its subcommands, and turns errors into lines and statuses."""

import importlib
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Final, NoReturn

import click

from vadexport import __version__
from vadexport.cli.console import Console
from vadexport.cli.interruption import heed_interruptions, let_interruptions_end
from vadexport.errors import MissingPackageError, VadexportError
from vadexport.terminal import printable, printable_lines

INTERRUPTED: Final = 130
UNEXPECTED: Final = 70

#: Commands in the order a user meets them; their modules are imported only when they are run.
_COMMANDS: Final = {
    "fit": "Train a reference detector on normal images.",
    "init": "Write a vadexport.toml, to build from.",
    "build": "Compile a trained detector and check every step.",
    "verify": "Hold artifacts against the untouched reference.",
    "bench": "Time artifacts and detectors side by side.",
    "diff": "Say what changed between two artifacts or reports.",
    "evaluate": "Measure AUROC, F1-max and AUPRO on labelled images.",
    "predict": "Score images with an artifact.",
    "inspect": "Say what a detector or an artifact is and holds.",
    "doctor": "Say which targets work here, and what the others lack.",
}

#: Packages that vadexport does not run without, by the name of their module.
_REQUIRED: Final = {
    "numpy": "numpy",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript",
    "onnxsim": "onnxsim",
    "PIL": "pillow",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "torch": "torch",
}


class _LazyGroup(click.Group):
    """A group whose commands, and what they import, are loaded only when they are asked for.

    A command's module imports what is heavy inside its function: `--help` must not wait for it.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        command = getattr(importlib.import_module(f"vadexport.cli.{cmd_name}"), "command", None)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vadexport")
def cli() -> None:
    """Compile trained visual anomaly detectors, and prove that their scores held.

    \b
    Example:
      vadexport fit patchcore images/train -o detector.safetensors
      vadexport build detector.safetensors -o artifact --target openvino:fp32
      vadexport verify artifact --reference detector.safetensors --images images/test

    \b
    Exit status:
      0 held   1 ran, but a check fell short   2 wrong usage or input
      3 a package, a GPU or an instruction is missing here   4 a backend failed
      70 a defect of vadexport   130 interrupted (Ctrl-C, or asked to end)
    """


def main() -> NoReturn:
    """Run the command line and end the process with its status."""
    console = Console()
    heed_interruptions(console)
    try:
        _run(console)
    except KeyboardInterrupt:  # that came late, while an error was being told
        _end_interrupted(console)


def _run(console: Console) -> NoReturn:
    try:
        status = cli.main(prog_name="vadexport", standalone_mode=False, obj=console)
        let_interruptions_end(console)
        sys.exit(status if isinstance(status, int) else 0)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _end_interrupted(console)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(printable_lines(error.format_message()), err=True)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        click.echo(f"vadexport: error: {_usage_line(error)}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - the last resort of a command line
        if console.interrupted:
            _end_interrupted(console)
        console.finish()
        if console.verbose:
            click.echo(printable_lines(traceback.format_exc()), nl=False, err=True)
        known = _user_error(error)
        if known is not None:
            click.echo(f"vadexport: error: {_one_line(str(known))}", err=True)
            sys.exit(known.exit_status)
        handle, name = tempfile.mkstemp(prefix="vadexport-", suffix=".log")
        with os.fdopen(handle, "w") as log:
            traceback.print_exc(file=log)
        click.echo(
            f"vadexport: unexpected error: {type(error).__name__}: {_first_line(str(error))} "
            f"(log: {Path(name)}; this is a defect of vadexport, please report it)",
            err=True,
        )
        sys.exit(UNEXPECTED)


def _end_interrupted(console: Console) -> NoReturn:
    console.finish()
    line = f"vadexport: interrupted, {console.when_interrupted()}"
    click.echo(printable(line), err=True)
    # Not sys.exit: where the interruption went through code of an extension module, Python would
    # end by the signal instead, whose status callers see as another. All has been cleaned up.
    sys.stdout.flush()
    os._exit(INTERRUPTED)


def _usage_line(error: click.ClickException) -> str:
    """What was wrong, and where to read how it is right."""
    line = _one_line(error.format_message()).removesuffix(".")
    if not isinstance(error, click.UsageError):
        return line
    command = error.ctx.command_path if error.ctx else "vadexport"
    return f"{line} (see `{command} --help`)"


def _user_error(error: Exception) -> VadexportError | None:
    """What the user can mend; None where vadexport is to blame."""
    if isinstance(error, VadexportError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name in _REQUIRED:
        return MissingPackageError(_REQUIRED[error.name])
    return None


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


def _first_line(text: str) -> str:
    """Of a stranger's error, which may be an essay; the log has all of it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[0]) if lines else "no reason given"
