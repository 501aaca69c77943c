"""What the published 1.3.x command line says on the wire and checks in the answers, with none of our code.

Its HTTP library sends no Content-Length with an empty POST, opens one connection first only to see the certificate, and
refuses every later one that shows another. Its JSON reader wants exact types, takes unknown keys at the top level, and
forgets them: the file that it writes has its own four keys only.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from hashlib import sha1, sha256
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, padding
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

REPORT_SIZE = 1184
_ARK, _ASK, _VCEK, _VLEK, _OTHER = 1, 2, 3, 4, 6

# The hex fields of its policies and their sizes in bytes; each key must be there and may be null.
_SEV_HEX = {
    "measurement": 48,
    "report_data": 64,
    "family_id": 16,
    "image_id": 16,
    "id_key_digest": 48,
    "author_key_digest": 48,
    "report_id": 32,
    "report_id_ma": 32,
}


class RefusedError(Exception):
    """An HTTP status that is not 2xx."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status} {text}")
        self.status = status
        self.text = text


class UntrustedError(Exception):
    """What it prints before it ends with a failure."""


class Client13:
    """One run of the program. ``version``: what its user agent says."""

    def __init__(self, host: str, port: int, *, version: str = "1.3.17") -> None:
        self.host, self.port, self.version = host, port, version
        self._socket: ssl.SSLSocket | None = None
        self.certificate = self._look_at_certificate()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Client13:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The wire

    def _connect(self) -> ssl.SSLSocket:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context.wrap_socket(socket.create_connection((self.host, self.port), timeout=60))

    def _look_at_certificate(self) -> bytes:
        """No Host, no reading of the answer, no goodbye."""
        tls = self._connect()
        try:
            tls.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
            leaf = tls.getpeercert(binary_form=True)
            assert leaf is not None
            x509.load_der_x509_certificate(leaf)
            return leaf
        finally:
            socket.socket.close(tls)

    def call(self, method: str, target: str, body: object = None) -> Any:
        """The decoded JSON of an answer of 2xx; anything else is RefusedError."""
        if self._socket is None:
            self._socket = self._connect()
            if self._socket.getpeercert(binary_form=True) != self.certificate:
                raise UntrustedError("Leaf certificate doesn't match the expected one")
        lines = [f"{method} {target} HTTP/1.1"]
        payload = b""
        if body is not None:
            payload = json.dumps(body, separators=(",", ":")).encode()
            lines += ["content-type: application/json", f"content-length: {len(payload)}"]
        lines += ["connection: keep-alive", f"user-agent: cli-version/{self.version}", "accept: */*"]
        lines += [f"host: {self.host}:{self.port}", "", ""]
        self._socket.sendall("\r\n".join(lines).encode("ascii") + payload)
        status, answer = self._read_answer(self._socket)
        if not 200 <= status < 300:
            raise RefusedError(status, answer.decode())
        return json.loads(answer)

    def _read_answer(self, tls: ssl.SSLSocket) -> tuple[int, bytes]:
        with tls.makefile("rb", buffering=-1) as stream:
            status = int(stream.readline().split()[1])
            headers: dict[str, str] = {}
            while (line := stream.readline().strip()) != b"":
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            assert "content-encoding" not in headers  # it asks for none and understands none
            answer = stream.read(int(headers["content-length"]))
        if headers.get("connection", "").lower() == "close":
            self.close()
        return status, answer

    @staticmethod
    def _query(nonce: bytes) -> str:
        text = base64.b64encode(nonce).decode().rstrip("=")
        return "?nonce=" + text.replace("+", "%2B").replace("/", "%2F")

    # The calls

    def tee_quote(self, nonce: bytes) -> bytes:
        return _bytes(self.call("GET", "/quote/tee" + self._query(nonce)))

    def tpm_quote(self, nonce: bytes) -> dict[str, Any]:
        return _tpm_answer(self.call("GET", "/quote/tpm" + self._query(nonce)))

    def ima_binary(self) -> bytes:
        return _bytes(self.call("GET", "/ima/binary"))

    def ima_ascii(self) -> str:
        text = self.call("GET", "/ima/ascii")
        assert isinstance(text, str)
        return text

    def app_init(self, content: bytes) -> None:
        answer = self.call("POST", "/app/init", {"content": base64.b64encode(content).decode().rstrip("=")})
        assert answer is None

    def app_restart(self) -> None:
        assert self.call("POST", "/app/restart") is None

    # The commands

    def take_snapshot(self, waiting: Callable[[], None] = lambda: None) -> bytes:
        """``snapshot``: the content of the file."""
        assert self.call("DELETE", "/snapshot") is None
        for _ in range(1000):
            answer = self.call("GET", "/snapshot")
            if answer is not None:
                return json.dumps(read_snapshot(answer), separators=(",", ":")).encode()
            waiting()
            time.sleep(0.02)  # 10 s there
        raise AssertionError("no snapshot")

    def verify(self, file: bytes) -> list[str]:
        """``verify``: the lines that it prints. Raises UntrustedError, RefusedError."""
        snapshot = read_snapshot(json.loads(file))
        lines = []
        # AWS and Azure, and machines of no known cloud, get a nonce of zeros.
        nonce = os.urandom(32) if snapshot["cloud_type"] == "GCP" else bytes(32)
        quote = self.tee_quote(nonce)
        if snapshot["filehashes"] is None:
            lines += ["[ WARNING ] No files hash in the snapshot", "[ SKIP ] Verifying VM integrity"]
            lines += ["[ SKIP ] Verifying TPM attestation"]
        else:
            log = self.ima_binary()
            told = self.tpm_quote(nonce)
            if not log:
                raise UntrustedError("No IMA list recovered")
            entries = list(read_ima(log))
            pcr = replay(log, told["pcr_value_hash_method"])
            check_tpm_quote(told, nonce, pcr, snapshot["tpm_policy"])
            lines.append("[ OK ] Verifying TPM attestation")
            check_files(entries, {(path, digest) for path, digest in snapshot["filehashes"]})
            lines.append(f"[ OK ] Verifying VM integrity (against {len(snapshot['filehashes'])} files)")
        expected = nonce + sha256(self.certificate).digest()
        if snapshot["cloud_type"] == "Azure":  # the file's own, as it stands there
            expected = bytes.fromhex(snapshot["tee_policy"]["Sev"]["report_data"])
        check_snp_quote(quote, snapshot["tee_policy"]["Sev"], expected)
        return [*lines, "[ OK ] Verifying TEE attestation"]


# JSON, as strictly as its reader takes it


def _bytes(value: Any) -> bytes:
    assert isinstance(value, list)
    assert all(type(item) is int and 0 <= item <= 255 for item in value)
    return bytes(value)


def _base64(value: Any) -> bytes:
    assert isinstance(value, str)
    assert "=" not in value
    raw = base64.b64decode(value + "=" * (-len(value) % 4), validate=True)
    assert base64.b64encode(raw).decode().rstrip("=") == value
    return raw


def _tpm_answer(value: Any) -> dict[str, Any]:
    assert value["pcr_value_hash_method"] in ("Sha1", "Sha256", "Sha384", "Sha512")
    return {
        "pcr_value_hash_method": value["pcr_value_hash_method"],
        **{name: _base64(value[name]) for name in ("quote", "signature", "public_key")},
    }


def _integer(value: Any, bits: int) -> None:
    assert value is None or (type(value) is int and 0 <= value < 1 << bits)


def read_snapshot(value: Any) -> dict[str, Any]:
    """Its four keys, checked; all others are let pass and forgotten."""
    assert isinstance(value, dict)
    assert value.get("cloud_type") in (None, "AWS", "Azure", "GCP")
    ((tee, policy),) = value["tee_policy"].items()
    assert tee == "Sev"
    for name, size in _SEV_HEX.items():
        text = policy[name]
        assert text is None or (len(text) == 2 * size and text == bytes.fromhex(text).hex())
    _integer(policy.get("guest_svn"), 32)
    _integer(policy.get("policy"), 64)
    tpm, files = value.get("tpm_policy"), value.get("filehashes")
    if tpm is not None:
        _integer(tpm.get("reset_count"), 32)
        _integer(tpm.get("restart_count"), 32)
        tpm = {name: tpm.get(name) for name in ("reset_count", "restart_count")}
    if files is not None:
        for path, digest in files:
            assert isinstance(path, str)
            bytes.fromhex(digest)
        files = [list(item) for item in {(path, digest) for path, digest in files}]
    kept = {name: policy.get(name) for name in (*_SEV_HEX, "guest_svn", "policy")}
    return {
        "cloud_type": value.get("cloud_type"),
        "tee_policy": {"Sev": kept},
        "tpm_policy": tpm,
        "filehashes": files,
    }


# IMA


def _records(log: bytes) -> Iterator[tuple[int, bytes, bytes, bytes]]:
    """PCR, template hash, name and data of each entry."""
    at = 0
    while at + 28 < len(log):
        pcr, template_hash, size = struct.unpack_from("<I20sI", log, at)
        name = log[at + 28 : at + 28 + size]
        at += 28 + size
        (size,) = struct.unpack_from("<I", log, at)
        yield pcr, template_hash, name, log[at + 4 : at + 4 + size]
        at += 4 + size


def read_ima(log: bytes) -> Iterator[tuple[str, str]]:
    """Path and digest (hex) of each entry; other templates and hashes end it with an error."""
    sizes = {b"sha1": 20, b"sha256": 32, b"sha512": 64}
    for _, _, name, data in _records(log):
        if name not in (b"ima-ng", b"ima-sig"):
            raise UntrustedError(f"Template name {name!r} not supported")
        (size,) = struct.unpack_from("<I", data)
        field, rest = data[4 : 4 + size], data[4 + size :]
        algorithm = field.partition(b":")[0]
        if algorithm not in sizes:
            raise UntrustedError("File hash not supported")
        (size,) = struct.unpack_from("<I", rest)
        yield rest[4 : 3 + size].decode("utf-8", "replace"), field[-sizes[algorithm] :].hex()


def replay(log: bytes, method: str) -> bytes:
    """The PCR after the whole list: it knows of no part of one."""
    assert method == "Sha256"
    value = bytes(32)
    for _, template_hash, _, data in _records(log):
        violation = not any(template_hash)
        assert violation or sha1(data).digest() == template_hash
        value = sha256(value + (b"\xff" * 32 if violation else sha256(data).digest())).digest()
    return value


def check_files(entries: list[tuple[str, str]], known: set[tuple[str, str]]) -> None:
    for path, digest in entries:
        if path != "boot_aggregate" and digest.strip("0") and (path, digest) not in known:
            raise UntrustedError(f"Entry ({path},{digest}) can't be found in the snapshot!")


# The TPM


def check_tpm_quote(told: dict[str, Any], nonce: bytes, pcr: bytes, policy: dict[str, Any] | None) -> None:
    attest, signature, public = told["quote"], told["signature"], told["public_key"]
    scheme, digest_alg, r_size = struct.unpack_from(">HHH", signature)
    r, rest = signature[6 : 6 + r_size], signature[6 + r_size :]
    s = rest[2:]
    if (scheme, digest_alg) != (0x18, 0x0B) or (len(r), len(s), rest[:2]) != (32, 32, b"\0\x20"):
        raise UntrustedError("the signature is not ECDSA with an R and an S of 32 bytes each")
    kind, name_alg, _, policy_size = struct.unpack_from(">HHIH", public)
    at = 10 + policy_size
    symmetric, key_scheme, hash_alg, curve, kdf, x_size = struct.unpack_from(">HHHHHH", public, at)
    x, rest = public[at + 12 : at + 12 + x_size], public[at + 12 + x_size :]
    y = rest[2:]
    if (kind, name_alg, symmetric, key_scheme, hash_alg, curve, kdf) != (0x23, 0x0B, 0x10, 0x18, 0x0B, 3, 0x10):
        raise UntrustedError("the key is not ECC P-256 with a name of SHA-256 and ECDSA with SHA-256")
    if (len(x), len(y), rest[:2]) != (32, 32, b"\0\x20"):
        raise UntrustedError("failed to get X or Y in public key")
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + x + y)
    try:
        key.verify(encode_dss_signature(int.from_bytes(r), int.from_bytes(s)), attest, ec.ECDSA(SHA256()))
    except InvalidSignature as exc:
        raise UntrustedError("failed to verify quote signature") from exc
    _check_attest(attest, nonce, pcr, policy)


def _check_attest(attest: bytes, nonce: bytes, pcr: bytes, policy: dict[str, Any] | None) -> None:
    assert attest[:6] == bytes.fromhex("ff5443478018")
    (size,) = struct.unpack_from(">H", attest, 6)
    at = 8 + size
    (size,) = struct.unpack_from(">H", attest, at)
    if attest[at + 2 : at + 2 + size] != nonce:
        raise UntrustedError("unexpected nonce in quote")
    at += 2 + size
    resets, restarts = struct.unpack_from(">II", attest, at + 8)
    if policy is None:
        raise UntrustedError("TPM policy is missing in the snapshot")
    for name, found in (("reset_count", resets), ("restart_count", restarts)):
        if policy[name] not in (None, found):
            raise UntrustedError(f"{name} '{found}' is not equal to the set value '{policy[name]}'")
    if attest[-34:] != b"\0\x20" + sha256(pcr).digest():
        raise UntrustedError("Bad Hash(PCR digest) in quote")


# SEV-SNP


def read_table(quote: bytes) -> list[tuple[int, bytes]]:
    """What follows the report: type number and DER of each certificate; bytes beyond the table are not looked at."""
    if len(quote) == REPORT_SIZE or quote[REPORT_SIZE:].startswith(b"-----BEGIN"):
        return []
    (count,) = struct.unpack_from("<Q", quote, REPORT_SIZE)
    at, table = REPORT_SIZE + 8, []
    for _ in range(count):
        (kind,) = struct.unpack_from("<I", quote, at)
        at += 4
        if kind == _OTHER:
            assert struct.unpack_from("<Q", quote, at) == (16,)
            at += 24
        (size,) = struct.unpack_from("<Q", quote, at)
        table.append((kind, quote[at + 8 : at + 8 + size]))
        at += 8 + size
    return table


def check_snp_quote(quote: bytes, policy: dict[str, Any], report_data: bytes) -> None:
    """Policy, then signatures; that the root is AMD's is what it leaves to whoever serves the quote."""
    report = quote[:REPORT_SIZE]
    if report[0x50:0x90] != report_data:
        raise UntrustedError("Attestation report data is not equal to the set value")
    if policy["measurement"] is not None and report[0x90:0xC0].hex() != policy["measurement"]:
        raise UntrustedError("Measurement miss-matches expected value")
    if quote[REPORT_SIZE:].startswith(b"-----BEGIN"):
        chain = {_VCEK: x509.load_pem_x509_certificates(quote[REPORT_SIZE:])[0]}
    else:
        table = {kind: x509.load_der_x509_certificate(der) for kind, der in reversed(read_table(quote))}
        if _VLEK not in table and table.keys() & {_ARK, _ASK, _VCEK} not in ({_ARK, _ASK, _VCEK}, set()):
            raise UntrustedError("Unhandled combination of ARK/ASK/VCEK/VLEK certificates")
        chain = table
    for issuer, subject in ((_ARK, _ARK), (_ARK, _ASK), (_ASK, _VCEK)):
        if issuer in chain and subject in chain:
            _check_issued(chain[issuer], chain[subject])
    signer = chain.get(_VLEK, chain.get(_VCEK))
    if signer is None:
        raise UntrustedError("the chip's certificate would be fetched from AMD")
    r, s = (int.from_bytes(report[at : at + 72], "little") for at in (0x2A0, 0x2E8))
    key = signer.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        key.verify(encode_dss_signature(r, s), report[:0x2A0], ec.ECDSA(SHA384()))
    except InvalidSignature as exc:
        raise UntrustedError("the report is not signed by the chip's key") from exc


def _check_issued(issuer: x509.Certificate, subject: x509.Certificate) -> None:
    key: Any = issuer.public_key()
    try:
        key.verify(subject.signature, subject.tbs_certificate_bytes, padding.PSS(padding.MGF1(SHA384()), 48), SHA384())
    except InvalidSignature as exc:
        raise UntrustedError(f"{subject.subject} was not signed by {issuer.subject}") from exc
