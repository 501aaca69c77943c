"""The main job, seen from outside: a simulated confidential VM, a snapshot, verifications, and attacks that are named.

Every step runs the real programs, shows the command and its output, and says what must come out of it. The demo ends
with 0 only if each step ended as announced. Nothing is left running, unless ``--keep`` asks for it.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

__all__ = ["STEPS", "Step", "main"]

_SECONDS = 60.0
_FAILED = re.compile(r"^\[ FAIL \] Not trusted: \S+ failed: (?P<ids>[a-z0-9_., ]+)", re.MULTILINE)

_VM = "python -m cosmian_vm.devkit vm"
_CLI = "cosmian_vm --url {url} --allow-insecure-tls"
_VERIFY = f"{_CLI} verify --snapshot cosmian_vm.snapshot --trust-root vm/trust_root.pem"
_SNAPSHOT = f"{_CLI} snapshot --trust-root vm/trust_root.pem"


@dataclass(frozen=True)
class Step:
    """One step. ``prepare``: commands that must succeed. ``command``: the one whose outcome is announced.
    ``fails``: ids that must be among the failed checks (empty: the verdict is trusted). ``shows``: must be printed.
    ``stranger``: somebody else gives the command, and it is refused.
    """

    title: str
    command: str
    prepare: tuple[str, ...] = ()
    fails: frozenset[str] = frozenset()
    shows: tuple[str, ...] = ()
    tidy: tuple[str, ...] = field(default=())
    stranger: bool = False


STEPS = (
    Step(
        "Record what the machine is, once it is set up",
        _SNAPSHOT,
        shows=("Snapshot written",),
    ),
    Step(
        "Is it still exactly that machine? Yes",
        _VERIFY,
        shows=("Verifying VM integrity (against", "Verifying TPM attestation", "Verifying TEE attestation"),
    ),
    Step(
        "The application gets its secrets: the machine is verified first, they go over the very key that it attested",
        f"{_CLI} app init --conf app.json --snapshot cosmian_vm.snapshot --trust-root vm/trust_root.pem",
        shows=("The application has its configuration",),
    ),
    Step(
        "The first order, the snapshot, claimed the machine: from now on it obeys its owner's key alone",
        f"{_CLI} app status --snapshot cosmian_vm.snapshot --trust-root vm/trust_root.pem",
        shows=("running", "Its configuration is there"),
    ),
    Step(
        "Somebody else orders a restart: refused, before anything is sent",
        f"env XDG_CONFIG_HOME=somebody-else {_CLI} app restart --trust-root vm/trust_root.pem",
        shows=("is owned by ed25519:",),
        stranger=True,
    ),
    Step(
        "Somebody runs a program that was not there: ima.files names it",
        _VERIFY,
        prepare=(f"{_VM} run --folder vm --from /bin/echo /usr/bin/miner mining...",),
        fails=frozenset({"ima.files"}),
        shows=("/usr/bin/miner",),
    ),
    Step(
        "A program of the snapshot is changed and run: ima.files names it, and says that it changed",
        _VERIFY,
        prepare=(f"{_VM} change --folder vm /usr/bin/uname",),
        fails=frozenset({"ima.files"}),
        shows=("/usr/bin/uname", "changed: the snapshot has"),
    ),
    Step(
        "The VM is rebooted, and the list of what ran starts anew: tpm.clock tells, and what to do",
        _VERIFY,
        prepare=(f"{_VM} reboot --folder vm",),
        fails=frozenset({"tpm.clock"}),
    ),
    Step(
        "It was our own reboot: everything else holds, so it may be excused",
        f"{_VERIFY} --allow-reboot",
    ),
    Step(
        "Yesterday's TPM quote is replayed: tpm.nonce",
        f"{_VERIFY} --allow-reboot",
        prepare=(f"{_VM} attack --folder vm replay-tpm",),
        fails=frozenset({"tpm.nonce"}),
    ),
    Step(
        "An agent with an AMD chain of its own making, under AMD's names: tee.chain",
        f"{_VERIFY} --allow-reboot",
        prepare=(f"{_VM} attack --folder vm forged-chain",),
        fails=frozenset({"tee.chain"}),
        tidy=(f"{_VM} attack --folder vm none",),
    ),
)


class _Failed(Exception):  # noqa: N818 - it is a step that failed, not an error of the demo
    """A step did not end as announced."""


class Demo:
    """One run in ``folder``, which holds everything that it makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self._bin = Path(sys.executable).parent

    def start(self) -> None:
        """Power the VM on and learn its address."""
        (self.folder / "app.json").write_text('{"database_password": "correct horse"}\n', encoding="ascii")
        self._title("A simulated confidential VM: swtpm, a simulated AMD, software IMA, and the real agent")
        output = self._run(f"{_VM} start --folder vm", expected=0)
        found = re.search(r"https://\S+", output)
        if found is None:
            raise _Failed("the VM did not say where it answers")
        self.url = found.group()

    def stop(self) -> None:
        """Power it off, quietly."""
        subprocess.run(
            [sys.executable, "-m", "cosmian_vm.devkit", "vm", "stop", "--folder", "vm"],
            cwd=self.folder,
            check=False,
            timeout=_SECONDS,
        )

    def step(self, number: int, step: Step) -> None:
        """Run one step. Raises _Failed where it ends otherwise than announced."""
        self._title(f"{number}. {step.title}")
        for command in step.prepare:
            self._run(command, expected=0)
        output = self._run(step.command, expected=1 if step.fails or step.stranger else 0)
        found = _FAILED.search(output)
        failed = frozenset(found["ids"].replace(" ", "").split(",")) if found else frozenset()
        if failed != step.fails:
            told, wanted = (", ".join(sorted(ids)) or "none" for ids in (failed, step.fails))
            raise _Failed(f"announced were these failures: {wanted}; these came: {told}")
        for text in step.shows:
            if text not in output:
                raise _Failed(f"the output does not show {text!r}")
        for command in step.tidy:
            self._run(command, expected=0)
        print(_style("as announced", "32"))

    def _title(self, text: str) -> None:
        print(f"\n{_style(text, '1')}", flush=True)

    def _run(self, command: str, *, expected: int) -> str:
        """Run ``command`` as a shell in ``folder`` would, show both, and return what it printed."""
        command = command.format(url=self.url)
        print(_style(f"$ {command}", "36"), flush=True)
        argv = shlex.split(command)
        at = 2 if argv[0] == "env" else 0
        argv[at] = str(self._bin / argv[at])
        try:
            done = subprocess.run(
                argv,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_SECONDS,
                check=False,
                env={**os.environ, "XDG_CONFIG_HOME": str(self.folder / "config")},
            )
        except subprocess.TimeoutExpired as exc:
            raise _Failed(f"it did not end within {_SECONDS:.0f} seconds") from exc
        output = done.stdout.decode(errors="replace")
        print(output, end="", flush=True)
        if done.returncode != expected:
            raise _Failed(f"its exit status is {done.returncode}, announced was {expected}")
        return output


def _style(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if sys.stdout.isatty() else text


def _commands_to_try(folder: Path, url: str) -> str:
    activate = Path(sys.executable).parent / "activate"
    return f"""
The VM is up. To try by hand:

  . {shlex.quote(str(activate))}
  cd {shlex.quote(str(folder))}
  export XDG_CONFIG_HOME=$PWD/config    # the owner's key that the demo made
  {_VERIFY.format(url=url)} --allow-reboot --verbose
  {_VERIFY.format(url=url)} --allow-reboot --report verdict.html
  python -m cosmian_vm.devkit attacks                          # every lie that it knows
  {_VM} attack --folder vm debug        # let it tell one; verify; then: attack --folder vm none
  {_VM} run --folder vm /usr/bin/ls /   # run a program in it
  {_VM} stop --folder vm                # and off
"""


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: list[str] | None = None) -> int:
    """Run the demo. 0 only if each step ended as announced."""
    parser = argparse.ArgumentParser(prog="script/demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the VM up and print commands to try by hand")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    folder = Path(tempfile.mkdtemp(prefix="cosmian-vm-demo-"))
    demo = Demo(folder)
    started, keep, status = time.monotonic(), False, 1
    try:
        demo.start()
        for number, step in enumerate(STEPS, 1):
            demo.step(number, step)
        took = time.monotonic() - started
        print(f"\nAll {len(STEPS)} steps ended as announced, in {took:.0f} seconds.")
        keep, status = options.keep, 0
    except _Failed as exc:
        print(f"\nNot as announced: {exc}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        status = 130
    finally:
        if keep:
            print(_commands_to_try(folder, demo.url))
        else:
            demo.stop()
            shutil.rmtree(folder, ignore_errors=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
