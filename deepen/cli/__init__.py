"""The command line: one command per verb. Parse, call, print; results on stdout, everything else on stderr.

The table below is all of it, in the order of ``--help``; commands live in one module per kind.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from deepen.cli import launching, looking, preparing, running
from deepen.errors import DeepenError
from deepen.progress import printable

app = typer.Typer(
    name="deepen",
    help="Continued pretraining for language models, from raw documents to a proven, exported model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

COMMANDS: dict[str, Callable[..., None]] = {
    "init": preparing.init,
    "check": preparing.check,
    "explain": preparing.explain,
    "plan": preparing.plan,
    "fetch": preparing.fetch,
    "biographies": preparing.biographies,
    "run": running.run,
    "launch": launching.launch,
    "ingest": running.stage_command("ingest"),
    "curate": running.curate,
    "tokenize": running.tokenize,
    "mix": running.stage_command("mix"),
    "baseline": running.stage_command("baseline"),
    "train": running.stage_command("train"),
    "evaluate": running.evaluate,
    "select": running.stage_command("select"),
    "export": running.stage_command("export"),
    "prove": running.prove,
    "remix": running.remix,
    "branch": running.branch,
    "demo": running.demo,
    "status": looking.status,
    "diagnose": looking.diagnose,
    "compare": looking.compare,
    "account": looking.account,
    "verify": looking.verify,
    "show": looking.show,
    "trace": looking.trace,
    "quarantine": looking.quarantine,
    "report": looking.report,
    "rm": looking.rm,
    "chat": looking.chat,
}
"""Every command by name."""
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from deepen.settings import VERSION

        print(f"deepen {VERSION}")
        raise typer.Exit


def main() -> None:
    """Entry point: run a command; users' errors are shown without a traceback."""
    try:
        sys.exit(app(standalone_mode=False) or 0)
    except DeepenError as error:
        _error(f"{error.message}\n\nhint: {error.hint}" if error.hint else error.message)
        sys.exit(error.exit_code)
    except typer.Abort:
        _error("stopped")
        sys.exit(130)
    except KeyboardInterrupt:
        _error("stopped; run the same command again to go on from here")
        sys.exit(130)
    except OSError as error:
        _os_error(error)
        sys.exit(1)
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's own usage errors know how to show themselves
            raise
        error.show()  # type: ignore[attr-defined]
        sys.exit(2)


def _os_error(error: OSError) -> None:
    """Tell what the operating system refused; one that names no file is no fault of the user's, and is raised again."""
    if error.errno == errno.EPIPE:  # whoever read the output (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if error.errno == errno.ENOSPC:
        _error(f"the disk is full: {error}\n\nhint: make room and run the same command again; finished parts are kept")
    elif error.filename is None:
        raise error
    else:
        hint = "is the path right, and may this user read it, or write there?"
        _error(f"`{error.filename}`: {error.strerror}\n\nhint: {hint}")


def _error(message: str) -> None:
    print(printable(f"error: {message}"), file=sys.stderr)
