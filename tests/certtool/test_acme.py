"""``acme`` against pebble: issued, renewed, refused; and servers that ask for what is none of their business."""

from __future__ import annotations

import base64
import http.server
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.certtool._pair import fits, names_of

pytestmark = pytest.mark.pebble

Run = Callable[..., Any]


@pytest.fixture
def order(run: Run, pebble: Any) -> Callable[..., Any]:
    """``acme`` with all that is always the same."""

    def order(*arguments: object, domain: str = "vm.example.test", known: bool = True, port: int | None = None) -> Any:
        if known:
            pebble.know(domain)
        return run(
            "acme", "--domain", domain, "--email", "me@example.test", "--workspace", "work", "--output", "out",
            "--directory", pebble.directory, "--ca-bundle", pebble.ca_bundle,
            "--http-port", pebble.http_port if port is None else port, "--http-address", "127.0.0.1", *arguments,
        )  # fmt: skip

    return order


def chain(folder: Path) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates((folder / "cert.pem").read_bytes())


def state(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "cert.pem").read_bytes(), (folder / "key.pem").read_bytes()


def test_issue(order: Callable[..., Any], pebble: Any, tmp_path: Path) -> None:
    ran = order()
    assert (ran.status, ran.err) == (0, "")
    out = tmp_path / "out"
    leaf, *rest = chain(out)
    assert names_of(leaf) == {"vm.example.test"}
    assert rest, "the full chain"
    leaf.verify_directly_issued_by(rest[0])
    (root,) = x509.load_pem_x509_certificates(pebble.root.read_bytes())
    rest[-1].verify_directly_issued_by(root)
    assert fits(*state(out))
    assert stat.S_IMODE((out / "key.pem").stat().st_mode) == 0o600
    (account,) = (tmp_path / "work").glob("account.*.pem")
    assert stat.S_IMODE(account.stat().st_mode) == 0o600
    with pytest.raises(OSError):  # noqa: PT011 - nobody listens any more
        socket.create_connection(("127.0.0.1", pebble.http_port), timeout=1)


def test_two_names(order: Callable[..., Any], pebble: Any, tmp_path: Path) -> None:
    pebble.know("www.example.test")
    assert order("--san", "WWW.example.test.", "--san", "vm.example.test").status == 0
    assert names_of(chain(tmp_path / "out")[0]) == {"vm.example.test", "www.example.test"}


def test_run_again_nothing_happens_until_due(order: Callable[..., Any], pebble: Any, tmp_path: Path) -> None:
    assert order().status == 0
    before = state(tmp_path / "out")
    (account,) = (tmp_path / "work").glob("account.*.pem")
    key = account.read_bytes()
    ran = order()
    assert (ran.status, ran.err) == (0, "")
    assert "nothing to do yet" in ran.out
    assert state(tmp_path / "out") == before
    lifetime = chain(tmp_path / "out")[0].not_valid_after_utc - chain(tmp_path / "out")[0].not_valid_before_utc
    assert lifetime > timedelta(days=31), "else the test says nothing"
    assert order("--renew-before", f"{lifetime.days + 1}d").status == 0
    after = state(tmp_path / "out")
    assert after[0] != before[0]
    assert after[1] != before[1]
    assert fits(*after)
    assert account.read_bytes() == key, "the account is kept"
    assert [p.name for p in (tmp_path / "work").glob("account.*.pem")] == [account.name]
    pebble.know("www.example.test")
    assert order("--san", "www.example.test").status == 0, "the names changed"
    assert len(names_of(chain(tmp_path / "out")[0])) == 2


def test_a_key_that_the_tee_derives(order: Callable[..., Any], machine: Any, tmp_path: Path) -> None:
    assert order("--derived-from-tee", "0badc0de").status == 0
    first = state(tmp_path / "out")
    assert "nothing to do yet" in order("--derived-from-tee", "0badc0de").out
    assert order("--derived-from-tee", "0badc0de", "--renew-before", "9999d").status == 0
    again = state(tmp_path / "out")
    assert again[1] == first[1]
    assert again[0] != first[0]
    assert order("--derived-from-tee", "01").status == 0
    assert state(tmp_path / "out")[1] != first[1]
    machine.secret = None
    ran = order("--derived-from-tee", "01", "--renew-before", "9999d")
    assert (ran.status, ran.err.count("\n")) == (1, 1)


def test_the_agents_own_pair_is_replaced(order: Callable[..., Any], tmp_path: Path) -> None:
    """What the first launch of the agent made stands there as two plain files."""
    from cosmian_vm.certificates import self_signed

    made = self_signed("vm.example.test", now=datetime.now(UTC))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cert.pem").write_bytes(made.certificate_pem)
    (tmp_path / "out" / "key.pem").write_bytes(made.key_pem)
    assert order().status == 0
    assert fits(*state(tmp_path / "out"))
    assert len(chain(tmp_path / "out")) > 1


def test_the_agent_picks_it_up(order: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cosmian_vm.agent import tls
    from cosmian_vm.agent.handover import MaterialFiles

    assert order().status == 0
    out = tmp_path / "out"
    monkeypatch.setattr(tls, "_POLL_SECONDS", 0.0)
    identity = tls.TlsIdentity(out / "cert.pem", out / "key.pem")
    files = MaterialFiles(out / "cert.pem", out / "key.pem")
    before = identity.leaf
    assert order("--renew-before", "9999d").status == 0
    identity.refresh()
    assert identity.leaf != before
    assert files.refresh()
    assert files.present.key == (out / "key.pem").read_bytes()


def fails_and_leaves_the_old_files(ran: Any, out: Path, before: tuple[bytes, bytes], status: int) -> None:
    assert (ran.status, ran.out, ran.err.count("\n")) == (status, "", 1), ran.err
    assert "Traceback" not in ran.err
    assert "internal error" not in ran.err
    assert state(out) == before


def test_a_challenge_that_fails(order: Callable[..., Any], loopback: Any, tmp_path: Path) -> None:
    """The CA comes to a port where nobody answers."""
    assert order().status == 0
    before = state(tmp_path / "out")
    ran = order("--renew-before", "9999d", port=loopback.free_port())
    fails_and_leaves_the_old_files(ran, tmp_path / "out", before, 1)
    assert "vm.example.test" in ran.err


def test_an_unknown_domain(order: Callable[..., Any], tmp_path: Path) -> None:
    ran = order(domain="nowhere.example.test", known=False)
    assert (ran.status, ran.err.count("\n")) == (1, 1)
    assert "nowhere.example.test" in ran.err
    assert not (tmp_path / "out" / "cert.pem").exists()
    assert not (tmp_path / "out" / "key.pem").exists()


def test_a_name_that_the_ca_refuses(order: Callable[..., Any], tmp_path: Path) -> None:
    ran = order(domain="blocked-domain.example", known=False)
    assert (ran.status, ran.err.count("\n")) == (1, 1)


def test_a_server_that_is_down(order: Callable[..., Any], loopback: Any, tmp_path: Path) -> None:
    assert order().status == 0
    before = state(tmp_path / "out")
    ran = order("--directory", f"https://127.0.0.1:{loopback.free_port()}/dir")
    fails_and_leaves_the_old_files(ran, tmp_path / "out", before, 3)


def test_a_server_that_no_ca_vouches_for(run: Run, pebble: Any, loopback: Any, tmp_path: Path) -> None:
    ran = run(
        "acme", "--domain", "vm.example.test", "--email", "me@example.test", "--workspace", "w", "--output", "o",
        "--directory", pebble.directory, "--http-port", loopback.free_port(), "--http-address", "127.0.0.1",
    )  # fmt: skip
    assert (ran.status, ran.err.count("\n")) == (3, 1)
    assert "--ca-bundle" in ran.err


def test_a_port_that_is_taken(order: Callable[..., Any], tmp_path: Path) -> None:
    assert order().status == 0
    before = state(tmp_path / "out")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = order("--renew-before", "9999d", port=taken.getsockname()[1])
    fails_and_leaves_the_old_files(ran, tmp_path / "out", before, 2)
    assert "another program listens there" in ran.err


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_without_root(run: Run, tmp_path: Path, pebble: Any) -> None:
    """As a user who may not listen on port 80 and may not write the output."""
    (tmp_path / "roots").mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    child = os.fork()
    if child == 0:  # pragma: no cover - another process
        status = 99
        try:
            os.setgid(65534)
            os.setuid(65534)
            ran = run(
                "acme", "--domain", "a.test", "--email", "a@b.test", "--workspace", "roots/w", "--output", "roots/o",
                "--directory", pebble.directory,
            )  # fmt: skip
            status = ran.status if ran.err.count("\n") == 1 and "cannot be made" in ran.err else 98
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--domain", "*.example.test"], "wildcard"),
        (["--domain", "10.0.0.7"], "not an address"),
        (["--domain", "::1"], "not an address"),
        (["--domain", "two words"], "not a DNS name"),
        (["--domain", "a..b"], "not a DNS name"),
        (["--domain", ""], "not a DNS name"),
        (["--san", "../../etc"], "not a DNS name"),
        (["--email", "nobody"], "--email"),
        (["--directory", "http://127.0.0.1/dir"], "https"),
        (["--directory", "file:///etc/passwd"], "https"),
        (["--directory", "https://"], "https"),
        (["--ca-bundle", "absent.pem"], "absent.pem"),
        (["--ca-bundle", "file"], "no certificates"),
        (["--derived-from-tee", "xyz"], "--derived-from-tee"),
        (["--renew-before", "soon"], "--renew-before"),
        (["--workspace", "file/x"], "cannot be made"),
        (["--output", "file/x"], "cannot be made"),
        (["--output", "file"], "cannot be made"),
        (["--staging"], "--staging"),
        (["--http-port", "0"], "http-port"),
        (["--http-address", "not an address"], "not an address"),
    ],
)
def test_bad_input(run: Run, loopback: Any, tmp_path: Path, arguments: list[str], named: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    ran = run(
        "acme", "--domain", "vm.example.test", "--email", "me@example.test", "--workspace", "w", "--output", "o",
        "--directory", f"https://127.0.0.1:{loopback.free_port()}/dir", "--http-port", loopback.free_port(),
        "--http-address", "127.0.0.1", *arguments,
    )  # fmt: skip
    assert ran.status == 2, ran.err
    assert named in ran.err
    assert "internal error" not in ran.err
    assert not list(tmp_path.glob("o/*.pem"))


def test_one_run_at_a_time(order: Callable[..., Any], tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "work").mkdir()
    with (tmp_path / "work" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ran = order()
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert "another cosmian_certtool" in ran.err


def test_a_damaged_account_key(order: Callable[..., Any], tmp_path: Path) -> None:
    assert order().status == 0
    (account,) = (tmp_path / "work").glob("account.*.pem")
    account.write_bytes(b"nonsense")
    before = state(tmp_path / "out")
    fails_and_leaves_the_old_files(order("--renew-before", "9999d"), tmp_path / "out", before, 2)


def test_staging_certificates_do_not_pass_for_others(order: Callable[..., Any], loopback: Any, tmp_path: Path) -> None:
    """A certificate of another directory is not what is wanted, however long it is valid."""
    assert order().status == 0
    ran = order("--directory", f"https://127.0.0.1:{loopback.free_port()}/production")
    assert ran.status == 3, "it asked, and nobody answered"
    assert ran.err.endswith("/production cannot be reached: Connection refused\n")


# nginx serves it, curl accepts it


@pytest.mark.skipif(shutil.which("nginx") is None or shutil.which("curl") is None, reason="needs nginx and curl")
def test_nginx_serves_it_and_curl_accepts_it(
    order: Callable[..., Any], pebble: Any, loopback: Any, tmp_path: Path
) -> None:
    assert order().status == 0
    port = loopback.free_port()
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"daemon off; pid {tmp_path}/nginx.pid; error_log stderr; worker_processes 1;\n"
        "events {}\n"
        "http {\n access_log off;\n"
        + "".join(
            f" {kind}_temp_path {tmp_path}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        + f" server {{ listen 127.0.0.1:{port} ssl; server_name vm.example.test;\n"
        f"  ssl_certificate {tmp_path}/out/cert.pem; ssl_certificate_key {tmp_path}/out/key.pem;\n"
        '  location / { return 200 "hello\\n"; } } }\n'
    )
    nginx = subprocess.Popen(
        [str(shutil.which("nginx")), "-c", str(config), "-e", "stderr"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        end = time.monotonic() + 60
        while nginx.poll() is None and time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        command = ["curl", "--silent", "--show-error", "--noproxy", "*", "--max-time", "60"]
        command += ["--resolve", f"vm.example.test:{port}:127.0.0.1", f"https://vm.example.test:{port}/"]
        got = subprocess.run([*command, "--cacert", pebble.root], capture_output=True, text=True, check=False)
        assert (got.stdout, got.returncode) == ("hello\n", 0), got.stderr
        refused = subprocess.run([*command, "--cacert", pebble.ca_bundle], capture_output=True, check=False)
        assert refused.returncode == 60  # CURLE_PEER_FAILED_VERIFICATION
    finally:
        nginx.terminate()
        nginx.communicate(timeout=60)


# Attacks: an ACME server that is not what it should be


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class HostileServer(http.server.ThreadingHTTPServer):
    """``lie``: where it goes wrong. ``asked``: what the program served."""

    lie: dict[str, Any]
    asked: list[list[int]]
    csr: x509.CertificateSigningRequest
    over: threading.Event

    def handle_error(self, *_: object) -> None:
        """Nothing: a program that has heard enough hangs up, and its complaint is what the test reads."""


class HostileAcme(http.server.BaseHTTPRequestHandler):
    """Speaks as much ACME as it takes; ``server.lie`` says where it goes wrong."""

    server: HostileServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def _say(self, value: object, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Replay-Nonce", base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("="))
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _drip(self, start: bytes) -> None:
        """A byte from time to time, each within the time that a read is given."""
        self.wfile.write(start)
        while not self.server.over.wait(0.05):
            self.wfile.write(b"a")

    def do_HEAD(self) -> None:
        self._say({})

    def do_GET(self) -> None:
        lie = self.server.lie
        if "directory" in lie:
            self._say(lie["directory"])
            return
        if "drip" in lie:
            self._drip(lie["drip"])
            return
        if "redirect" in lie:
            self._say({}, 302, Location=lie["redirect"])
            return
        here = f"https://127.0.0.1:{self.server.server_port}"
        self._say({"newNonce": f"{here}/nonce", "newAccount": f"{here}/account", "newOrder": f"{here}/order"})

    def do_POST(self) -> None:
        lie = self.server.lie
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        here = f"https://127.0.0.1:{self.server.server_port}"
        name = lie.get("name", "vm.example.test")
        identifier = {"type": "dns", "value": name}
        if self.path == "/account":
            self._say({"status": "valid"}, 201, Location=f"{here}/account/1")
        elif self.path == "/order":
            order = {"status": "pending", "identifiers": [identifier], "authorizations": [f"{here}/authz"]}
            self._say({**order, "finalize": f"{here}/finalize"}, 201, Location=f"{here}/order/1")
        elif self.path in ("/finalize", "/order/1") and "issue" in lie:
            if self.path == "/finalize":
                payload = json.loads(_unbase64(body["payload"]))
                self.server.csr = x509.load_der_x509_csr(_unbase64(payload["csr"]))
            order = {"status": "valid", "identifiers": [identifier], "authorizations": [f"{here}/authz"]}
            self._say({**order, "finalize": f"{here}/finalize", "certificate": f"{here}/certificate"})
        elif self.path == "/certificate":
            self._say(lie["issue"](self.server.csr))
        elif self.path == "/authz" and "issue" in lie:
            self._say({"identifier": identifier, "status": "valid", "challenges": []})
        elif self.path == "/authz":
            challenge = {"type": lie.get("type", "http-01"), "url": f"{here}/challenge", "status": "pending"}
            challenge["token"] = lie.get("token", "A" * 43)
            status = "pending"
            if self.server.asked:
                status, challenge["error"] = "invalid", {"type": "urn:ietf:params:acme:error:unauthorized"}
            self._say({"identifier": identifier, "status": status, "challenges": [challenge]})
        elif self.path == "/challenge":
            self.server.asked.append(self._fetch(lie))
            self._say({"type": "http-01", "url": f"{here}/challenge", "status": "processing", "token": "A" * 43},
                Link=f'<{here}/authz>;rel="up"')  # fmt: skip
        else:
            self._say({"type": "urn:ietf:params:acme:error:serverInternal", "detail": "no\x1b[2J\nmore"}, 500)

    def _fetch(self, lie: dict[str, Any]) -> list[int]:
        """What the program serves while a challenge is pending."""
        found = []
        for path in ["/.well-known/acme-challenge/" + "A" * 43, *lie["paths"]]:
            with socket.create_connection(("127.0.0.1", lie["port"]), timeout=60) as link:
                link.sendall(f"GET {path} HTTP/1.1\r\nHost: vm\r\n\r\n".encode())
                found.append(int(link.recv(100).split()[1]))
        return found


@pytest.fixture
def hostile(run: Run, loopback: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Order from a server that tells the lie given; it has ``asked`` what the program serves."""
    (tmp_path / "tls").mkdir()
    ca, certificate, key = loopback.authority(tmp_path / "tls")
    server = HostileServer(("127.0.0.1", 0), HostileAcme)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.daemon_threads = True
    server.over = threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cert.pem").write_bytes(b"old certificate")
    (tmp_path / "out" / "key.pem").write_bytes(b"old key")

    def order(**lie: Any) -> Any:
        port = loopback.free_port()
        server.lie = {"paths": [], "port": port, **lie}
        server.asked = []
        ran = run(
            "acme", "--domain", "vm.example.test", "--email", "me@example.test", "--workspace", "work", "--output",
            "out", "--directory", f"https://127.0.0.1:{server.server_port}/dir", "--ca-bundle", ca,
            "--http-port", port, "--http-address", "127.0.0.1",
        )  # fmt: skip
        assert (tmp_path / "out" / "cert.pem").read_bytes() == b"old certificate"
        assert (tmp_path / "out" / "key.pem").read_bytes() == b"old key"
        assert (ran.out, ran.err.count("\n")) == ("", 1), ran.err
        assert "internal error" not in ran.err
        assert ran.err.rstrip("\n").isprintable()
        return ran, server.asked

    yield order
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.mark.parametrize(
    "token",
    [
        "../../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "../work/account.127.0.0.1.pem",
        "/etc/passwd",
        "....................................",
        "A" * 42 + "/",
        "A" * 42 + "+",
        "A" * 43 + "\n",
        "A" * 42 + "\x00",
        "A" * 21,
        "A" * 5000,
        "",
        None,
        7,
        ["A" * 43],
    ],
    ids=repr,
)
def test_a_path_outside_the_challenge_directory(hostile: Callable[..., Any], token: object) -> None:
    ran, asked = hostile(token=token)
    assert ran.status == 1
    assert "asks for what is no challenge" in ran.err
    assert asked == []


def test_while_a_challenge_is_pending_nothing_else_is_served(hostile: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "secret").write_text("secret")
    challenge = "/.well-known/acme-challenge/"
    outside = [
        "/", "/secret", "/work/secret", challenge, challenge + "B" * 43, challenge + "A" * 43 + "/", "/etc/passwd",
        challenge + "../../secret", challenge + "A" * 43 + "?x", "/x/.." + challenge + "A" * 43, "/.lock",
        challenge + "%41" + "A" * 42, "/" + challenge + "A" * 43, "http://vm" + challenge + "A" * 43,
    ]  # fmt: skip
    ran, asked = hostile(paths=outside)
    assert ran.status == 1
    assert asked == [[200, *[404] * len(outside)]]


def _issued(csr: x509.CertificateSigningRequest, *, names: list[str], own_key: bool) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "hostile CA")]))
        .public_key(csr.public_key() if own_key else key.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=90))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


@pytest.mark.parametrize(
    ("issue", "named"),
    [
        (lambda csr: _issued(csr, names=["vm.example.test"], own_key=False), "for another key than ours"),
        (lambda csr: _issued(csr, names=["other.example.test"], own_key=True), "not for vm.example.test"),
        (lambda csr: b"", "cannot be read"),
        (lambda csr: b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be read"),
    ],
    ids=["another key", "another name", "nothing", "nonsense"],
)
def test_what_was_not_ordered_is_not_taken(hostile: Callable[..., Any], issue: object, named: str) -> None:
    ran, _ = hostile(issue=issue)
    assert ran.status == 1
    assert named in ran.err


@pytest.mark.parametrize(
    "start", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n"], ids=["head", "body"]
)
def test_an_answer_without_end(
    hostile: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes
) -> None:
    """No single read takes too long, and all of them have an end."""
    from cosmian_vm.certtool import _order

    monkeypatch.setattr(_order, "_ISSUANCE_SECONDS", 1.5)
    ran, asked = hostile(drip=start)
    assert (ran.status, asked) == (3, [])
    assert "/dir took longer than 1.5 s in all and was not waited for" in ran.err
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_another_name_than_ordered(hostile: Callable[..., Any]) -> None:
    ran, asked = hostile(name="other.example.test")
    assert (ran.status, asked) == (1, [])
    assert "other.example.test" in ran.err


def test_no_challenge_of_ours(hostile: Callable[..., Any]) -> None:
    ran, asked = hostile(type="dns-01")
    assert (ran.status, asked) == (1, [])


@pytest.mark.parametrize(
    "directory",
    [
        [],
        {},
        7,
        {"newNonce": 7},
        {"newNonce": "ftp://x"},
        b"<html>",
        b"[" * 100_000,
        b'{"a": "' + b"x" * (2 << 20) + b'"}',
    ],
    ids=lambda value: repr(value)[:20],
)
def test_a_server_that_speaks_no_acme(hostile: Callable[..., Any], directory: object) -> None:
    assert hostile(directory=directory)[0].status == 3


@pytest.mark.parametrize("to", ["http://127.0.0.1:1/dir", "file:///etc/passwd", "/dir"])
def test_a_server_that_leads_elsewhere(hostile: Callable[..., Any], to: str) -> None:
    assert hostile(redirect=to)[0].status == 3
