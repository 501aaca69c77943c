"""How each of the command lines ends: an exit status, and whatever went wrong as one line on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NoReturn

import click

from cosmian_vm.errors import CosmianVmError

__all__ = ["INTERRUPTED", "USAGE", "end", "run_program"]

USAGE = 2
"""Wrong usage, or a file that cannot be read."""
INTERRUPTED = 130


def run_program(
    program: click.Command,
    name: str,
    arguments: Sequence[str] | None,
    *,
    status_of: Callable[[CosmianVmError], int],
    interrupted: str = "interrupted",
    given: object = None,
    of_system: int | None = None,
) -> int:
    """Run one command line. ``arguments``: without the program's ``name``; None: those of this process. ``status_of``:
    the exit status that an error of ours stands for. ``interrupted``: what Ctrl-C is answered with. ``given``: the
    context's object. ``of_system``: the exit status of an OSError that nobody turned into one of ours; None: that is an
    error of the program.
    """
    try:
        status = program.main(args=arguments, prog_name=name, standalone_mode=False, obj=given)
        sys.stdout.flush()
    except click.ClickException as exc:
        exc.show()
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        click.echo(f"{name}: {interrupted}", err=True)
        return INTERRUPTED
    except CosmianVmError as exc:
        click.echo(f"{name}: {_plain(exc)}", err=True)
        return status_of(exc)
    except BrokenPipeError:
        # the reader of our output went away (| head): not an error of ours, and Python must not complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USAGE
    except MemoryError:
        click.echo(f"{name}: not enough memory for this input", err=True)
        return USAGE
    except Exception as exc:
        if isinstance(exc, OSError) and of_system is not None:
            click.echo(f"{name}: {_plain(exc)}", err=True)
            return of_system
        if sys.flags.dev_mode:
            raise
        problem = f"{type(exc).__name__}: {_plain(exc)}"
        click.echo(f"{name}: internal error, please report it: {problem} (python -X dev shows where)", err=True)
        return USAGE
    return status if isinstance(status, int) else 0


def end(status: int) -> NoReturn:
    """End this process without taking its modules apart one by one, which nobody would notice but for the time."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def _plain(error: Exception) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
