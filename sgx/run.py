"""What the first enclave runs: the certificate, then agent, application and nginx; when one ends, all end.

``run.py DOMAIN EMAIL [--staging]``. Each program is an enclave of its own, started from the same manifest. The
certificate is looked at once a day, and renewed when that is due; the agent picks it up, nginx is told to.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

LIBRARY = "/usr/lib/cosmian_vm"
DATA = Path("/var/lib/cosmian_vm/data")
DAY = 24 * 3600
PROGRAM = "import sys; sys.path.append({library!r}); from {module} import main; sys.argv[0] = {name!r}; main()"
MODULES = {"cosmian_certtool": "cosmian_vm.certtool.main", "cosmian_vm_agent": "cosmian_vm.agent.main"}


def ours(name: str, *arguments: str) -> list[str]:
    """The command line of one of our own programs."""
    code = PROGRAM.format(library=LIBRARY, module=MODULES[name], name=name)
    return [sys.executable, "-IBS", "-c", code, *arguments]


def certificate(domain: str, email: str, extra: list[str]) -> list[str]:
    """The command line that makes the certificate, or renews it when due."""
    places = ["--workspace", str(DATA / "acme"), "--output", str(DATA / "tls")]
    return ours("cosmian_certtool", "acme", "--domain", domain, "--email", email, *places, *extra)


def programs() -> dict[str, list[str]]:
    """What runs side by side."""
    return {
        "cosmian_vm_agent": ours("cosmian_vm_agent"),
        "app": ["/usr/bin/app"],
        "nginx": ["/usr/sbin/nginx", "-e", "stderr", "-c", "/etc/nginx/nginx.conf"],
    }


def supervise(commands: dict[str, list[str]], daily: Callable[[dict[str, int]], None]) -> int:
    """Start all, wait for the first that ends, end the others. ``daily`` is called once a day with names and pids.

    Returns an exit status: never 0, for none of them is meant to end.
    """
    running = {name: subprocess.Popen(command) for name, command in commands.items()}
    pids = {name: process.pid for name, process in running.items()}
    stop = threading.Event()

    def clock() -> None:
        while not stop.wait(DAY):
            daily(pids)

    def end(_number: int, _frame: object) -> None:
        for process in running.values():
            process.terminate()

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=clock, daemon=True).start()
    watchers = [threading.Thread(target=process.wait, daemon=True) for process in running.values()]
    for watcher in watchers:
        watcher.start()
    while all(watcher.is_alive() for watcher in watchers):
        watchers[0].join(1.0)
    stop.set()
    ended = next(name for name, process in running.items() if process.poll() is not None)
    print(f"cosmian_vm: {ended} has ended ({running[ended].returncode}): everything stops", file=sys.stderr, flush=True)
    end(signal.SIGTERM, None)
    for process in running.values():
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
    return running[ended].returncode or 1


def main(arguments: list[str]) -> int:
    """Exit status."""
    domain, email, *extra = arguments
    DATA.mkdir(parents=True, exist_ok=True)
    order = certificate(domain, email, extra)
    status = subprocess.run(order, check=False).returncode
    if status != 0:
        print("cosmian_vm: no certificate, nothing is started", file=sys.stderr, flush=True)
        return status

    def renew(pids: dict[str, int]) -> None:
        if subprocess.run(order, check=False).returncode == 0:
            os.kill(pids["nginx"], signal.SIGHUP)

    return supervise(programs(), renew)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
