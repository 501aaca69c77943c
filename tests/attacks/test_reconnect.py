"""A reconnect to another machine in the middle of a snapshot: two real agents, and somebody in between who switches."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import click.testing
import pytest

from cosmian_vm.cli import main
from cosmian_vm.client import AgentClient
from cosmian_vm.devkit.amd import VendorKeys
from cosmian_vm.devkit.vm import SimulatedVm

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"

pytestmark = [
    pytest.mark.swtpm,
    pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed"),
]


class Between:
    """Passes bytes to the agent at ``target``, a port of this computer, until told otherwise."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def switch(self, target: int) -> None:
        """Cut what is open; from now on it is another machine that answers."""
        self.target = target
        for side in self._open:
            side.close() if side.fileno() < 0 else side.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # who waits in accept() would not notice that it is closed
        self._thread.join()
        self._listener.close()
        self.switch(0)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                agent = socket.create_connection(("127.0.0.1", self.target), timeout=10)
            except OSError:
                return
            self._open += [client, agent]
            for source, sink in ((client, agent), (agent, client)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pass(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for side in (source, sink):
                side.close()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[SimulatedVm, SimulatedVm]]:
    """Two genuine machines of one vendor and one image."""
    ours = SimulatedVm(tmp_path / "ours", keys=VendorKeys.load(KEYS))
    theirs = SimulatedVm(tmp_path / "theirs")
    with ours, theirs:
        ours.start()
        shutil.copytree(ours.folder / "vendor", theirs.folder / "vendor")
        theirs.start()
        yield ours, theirs


def _port(vm: SimulatedVm) -> int:
    return urlsplit(vm.url).port or 0


def test_a_reconnect_to_another_genuine_machine(
    machines: tuple[SimulatedVm, SimulatedVm], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verdict was about our machine; the files listed would be those of the operator's."""
    ours, theirs = machines
    between = Between(_port(ours))
    written = tmp_path / "taken.snapshot"
    arguments = ["--url", f"https://127.0.0.1:{between.port}", "--allow-insecure-tls", "snapshot", "--offline"]
    arguments += ["--trust-root", str(ours.trust_root), "--output", str(written)]

    def run() -> tuple[int, str]:
        with click.testing.CliRunner().isolation() as streams:
            return main.run(arguments), streams[1].getvalue().decode()

    try:
        assert run() == (0, "")
        written.unlink()
        pin = AgentClient.pin

        def pin_and_switch(self: AgentClient, leaf: bytes) -> None:
            pin(self, leaf)
            between.switch(_port(theirs))

        monkeypatch.setattr(AgentClient, "pin", pin_and_switch)
        status, told = run()
    finally:
        between.close()
    assert status == 1
    assert "another machine" in told
    assert not written.exists()
