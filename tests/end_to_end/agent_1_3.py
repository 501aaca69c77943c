"""What a published 1.3.x agent answers, scripted over a simulated machine: calls, statuses, JSON and certificate."""

from __future__ import annotations

import base64
import importlib.util
import json
import random
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from cosmian_vm.certificates import SelfSigned
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.evidence.ima import parse_binary
from cosmian_vm.evidence.snp import parse_report
from cosmian_vm.evidence.tpm import parse_quote

WENT_WRONG = b"Something went wrong from the cosmian_vm agent. (error id: 0000)"
NUMBERS = {"typed": (1, 2, 3), "typed-old": (0, 1, 2)}
"""ARK, ASK and VCEK in the certificate tables of 1.3.5 and later, and of 1.3.0 to 1.3.4."""


def certificate() -> SelfSigned:
    """As its first launch makes one: a CA, with the address that it listens on for a name."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = [(NameOID.COMMON_NAME, "vm-1"), (NameOID.ORGANIZATION_NAME, "Cosmian Tech"), (NameOID.COUNTRY_NAME, "FR")]
    subject = x509.Name([x509.NameAttribute(oid, text) for oid, text in names])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder(subject, subject, key.public_key(), random.getrandbits(31) + 1)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("0.0.0.0"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    return SelfSigned(
        built.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _fake_agent(identity: SelfSigned) -> Any:
    path = Path(__file__).resolve().parent.parent / "client" / "fake_agent.py"
    spec = importlib.util.spec_from_file_location("end_to_end_fake_agent", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FakeAgent(identity)


class Agent13:
    """``polls``: how often the snapshot is not ready yet. ``layout``: of the certificates behind the report.
    ``device``: whether its configuration names a TPM.
    """

    def __init__(self, machine: Machine, *, layout: str = "typed", polls: int = 1, device: bool = True) -> None:
        self.machine, self.layout, self.device = machine, layout, device
        self._polls = polls
        self._left: int | None = None
        self.fake = _fake_agent(certificate())
        routes: dict[tuple[str, str], Callable[[Any], tuple[int, bytes]]] = {
            ("GET", "/quote/tee"): self._quote_tee,
            ("GET", "/quote/tpm"): self._quote_tpm,
            ("GET", "/ima/binary"): self._ima_binary,
            ("GET", "/snapshot"): self._get_snapshot,
            ("DELETE", "/snapshot"): self._delete_snapshot,
            ("POST", "/app/init"): lambda _: (200, b"null"),
            ("POST", "/app/restart"): lambda _: (200, b"null"),
        }
        for place, route in routes.items():
            self.fake.routes[place] = self._checked(route)
        for place in (("POST", "/v2/evidence"), ("GET", "/version"), ("GET", "/v2/snapshot")):
            self.fake.routes[place] = lambda _: (404, b"")

    @property
    def url(self) -> str:
        url: str = self.fake.url
        return url

    @property
    def calls(self) -> list[tuple[str, str]]:
        return [(call.method, call.path) for call in self.fake.calls]

    @staticmethod
    def _checked(route: Callable[[Any], tuple[int, bytes]]) -> Callable[[Any], tuple[int, bytes]]:
        def answer(call: Any) -> tuple[int, bytes]:
            if call.headers.get("user-agent", "").startswith("cli-version/0."):
                return 400, b"Please update the cosmian_vm cli to version 1.0"
            return route(call)

        return answer

    @staticmethod
    def _nonce(call: Any) -> bytes:
        """One parameter, base64 without padding; a plus sign by itself is a space, which is no base64."""
        name, _, value = call.query.partition("=")
        assert name == "nonce"
        text = unquote_plus(value)
        assert len(text) % 4 != 1
        assert "=" not in text
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)

    def _quote_tee(self, call: Any) -> tuple[int, bytes]:
        nonce = self._nonce(call)
        assert len(nonce) == 32
        return 200, _array(self._tee(nonce + sha256(call.leaf).digest()))

    def _tee(self, report_data: bytes) -> bytes:
        assert self.machine.tee is not None
        vcek, ask, ark = self.machine.vendor.certificates
        table = struct.pack("<Q", 3)
        for number, der in zip(NUMBERS[self.layout], (ark, ask, vcek), strict=True):
            table += struct.pack("<IQ", number, len(der)) + der
        return self.machine.tee.quote(report_data).raw + table

    def _quote_tpm(self, call: Any) -> tuple[int, bytes]:
        if not self.device or self.machine.tpm is None:
            return 500, WENT_WRONG
        quote = self.machine.tpm.quote(self._nonce(call), (10,))
        texts = {"quote": quote.quote, "signature": quote.signature, "public_key": quote.ak_public}
        encoded = {name: base64.b64encode(raw).decode().rstrip("=") for name, raw in texts.items()}
        return 200, _json({"pcr_value_hash_method": "Sha256", **encoded})

    def _ima_binary(self, _call: Any) -> tuple[int, bytes]:
        log = self.machine.ima_log() if self.device else None
        return (500, WENT_WRONG) if log is None else (200, _array(log))

    def _delete_snapshot(self, _call: Any) -> tuple[int, bytes]:
        if self._left:
            return 409, b"A snapshot is already processing"
        self._left = None
        return 200, b"null"

    def _get_snapshot(self, _call: Any) -> tuple[int, bytes]:
        if self._left is None:
            self._left = self._polls
            return 202, b"null"
        self._left = max(self._left - 1, 0)
        return (202, b"null") if self._left else (200, self.snapshot())

    def snapshot(self) -> bytes:
        """As its JSON library writes it: every entry of the list, violations as well, then every file."""
        report = parse_report(self._tee(bytes(64))[:1184])
        policy: dict[str, Any] = {name: getattr(report, name).hex() for name in ("measurement", "report_data")}
        policy |= {"family_id": report.family_id.hex(), "image_id": report.image_id.hex()}
        policy["guest_svn"] = report.guest_svn
        policy |= {name: getattr(report, name).hex() for name in ("id_key_digest", "author_key_digest")}
        policy |= {"policy": report.policy, "report_id": report.report_id.hex()}
        policy["report_id_ma"] = report.report_id_ma.hex()
        tpm = files = None
        if self.device:
            assert self.machine.tpm is not None
            told = parse_quote(self.machine.tpm.quote(b"", ()).quote)
            tpm = {"reset_count": told.reset_count, "restart_count": told.restart_count}
            files = sorted(self._files())
            random.Random(7).shuffle(files)
        value = {"cloud_type": self.machine.cloud, "tee_policy": {"Sev": policy}}
        return _json({**value, "tpm_policy": tpm, "filehashes": files})

    def _files(self) -> set[tuple[str, str]]:
        found = {(path, sha256(content).hexdigest()) for path, content in self.machine.files.items()}
        for entry in parse_binary(self.machine.ima_log() or b""):
            fields = entry.fields()
            assert fields is not None
            digest = bytes(32) if entry.is_violation else fields.digest
            found.add((fields.path.decode(errors="replace"), digest.hex()))
        return found

    def close(self) -> None:
        self.fake.close()


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def _array(raw: bytes) -> bytes:
    return _json(list(raw))
