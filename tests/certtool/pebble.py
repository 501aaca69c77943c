"""An ACME CA on loopback (pebble), with a DNS that knows the names it is told."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

PROGRAMS = ("pebble", "pebble-challtestsrv")
_SECONDS = 30.0


def missing() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def authority(folder: Path) -> tuple[Path, Path, Path]:
    """A CA of our own and a certificate of it for this machine: files of the CA, the certificate and its key."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback CA")])
    now = datetime.now(UTC)

    def certificate(name: x509.Name, public: Any, *, ca: bool) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        )
        if not ca:
            names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(ca_key, hashes.SHA256())

    own = certificate(
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")]), key.public_key(), ca=False
    )
    files = folder / "loopback-ca.pem", folder / "loopback.pem", folder / "loopback.key.pem"
    files[0].write_bytes(certificate(ca_name, ca_key.public_key(), ca=True).public_bytes(Encoding.PEM))
    files[1].write_bytes(own.public_bytes(Encoding.PEM))
    files[2].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files


class Pebble:
    """``directory``: URL. ``ca_bundle``: what its own TLS certificate is checked with. ``http_port``: where it comes to
    for HTTP-01. ``root``: of the certificates that it issues.
    """

    def __init__(self, folder: Path) -> None:
        self.ca_bundle, certificate, key = authority(folder)
        self.http_port = free_port()
        listen, manage, dns, dns_manage = (free_port() for _ in range(4))
        self.directory = f"https://127.0.0.1:{listen}/dir"
        self._manage, self._dns_manage = f"https://127.0.0.1:{manage}", f"http://127.0.0.1:{dns_manage}"
        config = folder / "pebble.json"
        config.write_text(
            json.dumps(
                {
                    "pebble": {
                        "listenAddress": f"127.0.0.1:{listen}",
                        "managementListenAddress": f"127.0.0.1:{manage}",
                        "certificate": str(certificate),
                        "privateKey": str(key),
                        "httpPort": self.http_port,
                        "tlsPort": free_port(),
                        "ocspResponderURL": "",
                        "externalAccountBindingRequired": False,
                    }
                }
            )
        )
        self._known: set[str] = set()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._log = (folder / "pebble.log").open("wb")
        self._start(
            "pebble-challtestsrv", "-dns01", f"127.0.0.1:{dns}", "-management", f"127.0.0.1:{dns_manage}",
            "-http01", "", "-https01", "", "-tlsalpn01", "", "-defaultIPv4", "", "-defaultIPv6", "",
        )  # fmt: skip
        self._start("pebble", "-config", str(config), "-dnsserver", f"127.0.0.1:{dns}")
        self._wait(listen)
        self._wait(dns_manage)
        self.root = folder / "pebble-root.pem"
        self.root.write_bytes(self._get(f"{self._manage}/roots/0"))

    def know(self, *names: str) -> None:
        """Names that lead to this machine."""
        for name in names:
            if name in self._known:  # told twice, it would answer with two addresses
                continue
            self._known.add(name)
            body = json.dumps({"host": name, "addresses": ["127.0.0.1"]}).encode()
            urllib.request.urlopen(f"{self._dns_manage}/add-a", data=body, timeout=_SECONDS).close()

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        self._log.close()

    def _start(self, *command: str) -> None:
        variables = {"PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0"}
        self._processes.append(
            subprocess.Popen(
                command, env=os.environ | variables, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
            )
        )

    def _wait(self, port: int) -> None:
        end = time.monotonic() + _SECONDS
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise AssertionError(f"nothing listens on {port}: {Path(self._log.name).read_text()}")

    def _get(self, url: str) -> bytes:
        context = ssl.create_default_context(cafile=str(self.ca_bundle))
        with urllib.request.urlopen(url, timeout=_SECONDS, context=context) as answer:
            content: bytes = answer.read()
        return content
