"""The command line: `sweeps`. Each command is a function in `sweeps.commands`."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer
from pydantic import ValidationError

from sparse_model import __version__
from sparse_model.errors import InputError
from sparse_model.storage.store_errors import StorageFailed, StorageUnavailable, redacted
from sweeps.commands import circuit, cluster, curves, data, doctor, folder, frontier, one, pages, run, search, tasks

sweeps_app = typer.Typer(
    name="sweeps",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def say_version(asked: bool) -> None:
    """Print the version and exit, where it is asked for."""
    if asked:
        print(f"circuit-sweeps {__version__}")
        raise typer.Exit


@sweeps_app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=say_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Train weight-sparse transformers, prune them to circuits, read the capability-interpretability frontier."""


for command in (
    run.run_command,
    *(cluster.plan_command, cluster.submit_command, cluster.status_command, folder.clean_command),
    *(
        frontier.frontier_command,
        frontier.compact_command,
        curves.curves_command,
        curves.baselines_command,
        search.search_command,
    ),
    pages.report_command,
    *(one.train_command, one.prune_command),
    *(tasks.tasks_command, data.corpus_command, data.tokenizer_command),
    one.import_command,
):
    sweeps_app.command(command.__name__.removesuffix("_command"))(command)
circuit.circuit_app.command("page")(pages.page_command)
circuit.circuit_app.command("compare")(pages.compare_command)
sweeps_app.add_typer(circuit.circuit_app, name="circuit")
sweeps_app.command("doctor")(doctor.doctor_command)

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def run_and_exit(arguments: list[str] | None = None) -> None:
    """Run a command and exit: 0 ok, 1 failed, 2 bad input (one line per mistake on stderr), 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):  # characters that a terminal has no place for are told by their numbers
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.exit(status_of(arguments))


def status_of(arguments: list[str] | None = None) -> int:
    """Run a command; its exit status, after saying on stderr what was wrong."""
    try:
        status = sweeps_app(arguments, prog_name="sweeps", standalone_mode=False) or OK
        if status == INTERRUPTED:  # typer has caught the Ctrl-C and says nothing
            raise KeyboardInterrupt
        return status
    except typer.TyperException as error:
        _say(f"{' '.join(error.format_message().split()).removesuffix('.')}{_way_out(error)}")
        return BAD_INPUT
    except ValidationError as error:
        for detail in error.errors():
            _say(f"{'.'.join(map(str, detail['loc']))}: {detail['input']!r}: {detail['msg']}")
        return BAD_INPUT
    except (StorageUnavailable, StorageFailed) as error:
        _say(f"failed: {error}")
        return FAILED
    except InputError as error:
        for line in str(error).splitlines():
            _say(line)
        return BAD_INPUT
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted; what was finished is kept, and the same command goes on from there")
        return INTERRUPTED
    except Exception as error:
        _say(redacted(f"failed: {type(error).__name__}: {' '.join(str(error).split())}"))
        return FAILED


def _way_out(error: typer.TyperException) -> str:
    """Where a wrong command is described: in the help of the program or of the command that was meant."""
    context = getattr(error, "ctx", None)
    if context is None:
        return ""
    there = "lists the commands" if hasattr(context.command, "commands") else "says what it takes"
    return f"; `{context.command_path} --help` {there}"


def _say(line: str) -> None:
    print(f"sweeps: {line}", file=sys.stderr)
