"""Evidence in hex, base64, JSON and the like is inspected as what is inside."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.soft_tpm import SoftTpm
from cosmian_vm.inspection import identify
from cosmian_vm.inspection._wrapping import layers
from cosmian_vm.inspection.model import Inspection, Roots

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
VENDOR = AmdVendor.create(keys=VendorKeys.load(KEYS), now=NOW - timedelta(days=2))
REPORT = VENDOR.sign_report()


def inspected(raw: bytes, *given_files: bytes, name: str = "file") -> Inspection:
    material = identify.material_of((f"beside {n}", content) for n, content in enumerate(given_files))
    return identify.inspect(raw, material, name=name, verify=(NOW, Roots(VENDOR.certificates[-1:])))


def dump(raw: bytes, *, squeeze: bool) -> bytes:
    lines: list[str] = []
    before = b""
    for at in range(0, len(raw), 16):
        row = raw[at : at + 16]
        if squeeze and row == before:
            if lines[-1] != "*":
                lines.append("*")
            continue
        before = row
        lines.append(f"{at:08x}  {' '.join(f'{byte:02x}' for byte in row)}  |{'.' * len(row)}|")
    return "\n".join([*lines, f"{len(raw):08x}", ""]).encode()


HEX = REPORT.hex().encode()
WRAPPED = {
    "hex": HEX,
    "hex in lines": b"\n".join(HEX[at : at + 60] for at in range(0, len(HEX), 60)) + b"\n",
    "hex upper": HEX.upper(),
    "hex with 0x": b"0x" + HEX,
    "hex list": b", ".join(b"0x%02x" % byte for byte in REPORT),
    "hex colons": b":".join(b"%02x" % byte for byte in REPORT),
    "base64": base64.b64encode(REPORT),
    "base64 in lines": base64.encodebytes(REPORT),
    "base64 url": base64.urlsafe_b64encode(REPORT).rstrip(b"="),
    "base64 of hex": base64.b64encode(HEX),
    "json array": json.dumps(list(REPORT)).encode(),
    "json string": json.dumps(base64.b64encode(REPORT).decode()).encode(),
    "pem": b"-----BEGIN SNP REPORT-----\n" + base64.encodebytes(REPORT) + b"-----END SNP REPORT-----\n",
    "hexdump": dump(REPORT, squeeze=False),
    "hexdump squeezed": dump(REPORT, squeeze=True),
    "ioctl": bytes(4) + (1184).to_bytes(4, "little") + bytes(24) + REPORT + bytes(2784),
}


@pytest.mark.parametrize("raw", WRAPPED.values(), ids=WRAPPED)
def test_a_wrapped_report_is_that_report(raw: bytes) -> None:
    found = inspected(raw, *VENDOR.certificates)
    assert (found.kind, found.authentic()) == ("snp-report", True)
    assert found.facts["encoding"]
    assert found.facts["report"] == inspected(REPORT).facts["report"]


def test_what_needs_no_unwrapping_says_nothing_of_it() -> None:
    assert "encoding" not in inspected(REPORT).facts


@pytest.mark.parametrize("raw", WRAPPED.values(), ids=WRAPPED)
def test_a_changed_wrapped_report_is_not(raw: bytes) -> None:
    changed = REPORT[:0x95] + bytes([REPORT[0x95] ^ 1]) + REPORT[0x96:]
    mutated = raw.replace(REPORT, changed) if REPORT in raw else changed.hex().encode()
    assert not inspected(mutated, *VENDOR.certificates).authentic()


def test_certificates_beside_may_be_wrapped_too() -> None:
    chip, ask, _ = VENDOR.certificates
    assert inspected(REPORT, chip.hex().encode(), base64.b64encode(ask)).authentic()


def table(*certificates: bytes) -> bytes:
    """As the kernel hands it out beside a report (auxblob): GHCB specification, 4.1.8.1."""
    guids = ("63da758de6644564adc5f4b93be8accd", "4ab7b379bbac4fe4a02f05aef327c782", "c0b406a4a803495297433fb6014cd0ae")
    at = 24 * (len(certificates) + 1)
    head, body = b"", b""
    for guid, der in zip(guids, certificates, strict=True):
        head += bytes.fromhex(guid) + (at + len(body)).to_bytes(4, "little") + len(der).to_bytes(4, "little")
        body += der
    return (head + bytes(24) + body).ljust(8192, b"\0")


def test_a_certificate_table_by_itself() -> None:
    raw = table(*VENDOR.certificates)
    assert inspected(REPORT, raw).authentic()
    assert inspected(REPORT, raw.hex().encode()).authentic()
    found = inspected(raw)
    assert (found.kind, found.facts["encoding"], found.authentic()) == ("certificate", "SNP certificate table", True)
    assert not inspected(raw[:200]).authentic()


def test_told_kind_is_found_inside() -> None:
    found = identify.inspect(WRAPPED["hex"], identify.material_of([]), kind="snp-report")
    assert (found.kind, found.problem) == ("snp-report", "")


@pytest.mark.parametrize("raw", [b"00" * 40, b"hello world", b'"abcd"', b"[1, 2, 3]", b"deadbeef", b"{}", b"[]", b'""'])
def test_wrapped_garbage_is_garbage(raw: bytes) -> None:
    found = inspected(raw)
    assert (found.kind, found.authentic()) == (identify.UNKNOWN, False)


@given(st.binary(max_size=200) | st.text(alphabet='0123456789abcdef \n:,"[]{}=-*', max_size=200).map(str.encode))
def test_total(raw: bytes) -> None:
    assert len(list(layers(raw))) <= 4


@pytest.fixture(scope="module")
def quoted() -> dict[str, bytes]:
    tpm = SoftTpm()
    nonce = bytes(range(32))
    tpm.extend(4, {"sha256": bytes(31) + b"\1"})
    quote = tpm.quote(nonce, range(16))
    return {
        "quote": quote.quote,
        "signature": quote.signature,
        "public_key": tpm.ak_public(),
        "nonce": nonce,
        "pcrs": b"".join(tpm.read_pcrs(range(16)).values()),
    }


def plain(raw: bytes) -> str:
    return base64.b64encode(raw).decode().rstrip("=")


def ids(found: Inspection) -> dict[str, str]:
    return {check.id: str(check.status) for check in found.checks or ()}


def test_the_agents_answer(quoted: dict[str, bytes]) -> None:
    """GET /quote/tpm of version 1, as it was saved."""
    parts = {name: plain(quoted[name]) for name in ("quote", "signature", "public_key")}
    found = inspected(json.dumps({"pcr_value_hash_method": "Sha256", **parts}).encode(), quoted["nonce"])
    assert (found.kind, found.authentic()) == ("tpm-quote", True)
    assert (ids(found)["tpm.ak"], ids(found)["tpm.nonce"]) == ("ok", "ok")


def test_a_json_quote_with_its_pcrs(quoted: dict[str, bytes]) -> None:
    values = [quoted["pcrs"][at : at + 32] for at in range(0, 512, 32)]
    forms: list[object] = [
        [value.hex() for value in values],
        {str(index): plain(value) for index, value in enumerate(values)},
        {"SHA256": {str(index): value.hex() for index, value in enumerate(values)}},
        [list(value) for value in values],
    ]
    for pcrs in forms:
        answer = {"quote": {"message": list(quoted["quote"]), "signature": quoted["signature"].hex(), "pcrs": pcrs}}
        found = inspected(json.dumps(answer).encode(), quoted["public_key"])
        assert found.authentic(), pcrs
        assert ids(found)["pcr_digest"] == "ok"
        values[0] = values[4]
        answer["quote"]["pcrs"] = [value.hex() for value in values]
        assert ids(inspected(json.dumps(answer).encode(), quoted["public_key"]))["pcr_digest"] == "fail"
        values[0] = quoted["pcrs"][:32]


def test_keylimes_line(quoted: dict[str, bytes]) -> None:
    line = ":".join(base64.b64encode(quoted[name]).decode() for name in ("quote", "signature")).encode()
    found = inspected(b"r" + line, quoted["public_key"])
    assert (found.kind, found.authentic(), found.facts["encoding"]) == ("tpm-quote", True, "keylime's quote")


def test_what_tpm2_quote_prints(quoted: dict[str, bytes]) -> None:
    rows = "".join(f"    {n}: 0x{quoted['pcrs'][32 * n : 32 * n + 32].hex().upper()}\n" for n in range(16))
    text = f"quoted: {quoted['quote'].hex()}\nsignature:\n  alg: ecdsa\n  sig: {quoted['signature'].hex()}\npcrs:\n"
    found = inspected(f"{text}  sha256:\n{rows}calcDigest: 00\n".encode(), quoted["public_key"])
    assert found.authentic()
    assert ids(found)["pcr_digest"] == "ok"


def test_sized_parts(quoted: dict[str, bytes]) -> None:
    sized = {name: len(raw).to_bytes(2, "big") + raw for name, raw in quoted.items()}
    found = inspected(sized["quote"], sized["signature"], sized["public_key"])
    assert (found.kind, found.authentic()) == ("tpm-quote", True)
    assert inspected(sized["signature"], sized["quote"], sized["public_key"]).authentic()


def test_bare_pcr_values(quoted: dict[str, bytes]) -> None:
    """One behind the other, as ``tpm2_quote -F values`` writes them, or in hex."""
    beside = (quoted["signature"], quoted["public_key"])
    for values in (quoted["pcrs"], quoted["pcrs"].hex().encode()):
        assert ids(inspected(quoted["quote"], *beside, values))["pcr_digest"] == "ok"


def test_nonce_in_base64(quoted: dict[str, bytes]) -> None:
    beside = (quoted["signature"], quoted["public_key"])
    assert ids(inspected(quoted["quote"], *beside, base64.b64encode(quoted["nonce"])))["tpm.nonce"] == "ok"
    assert ids(inspected(quoted["quote"], *beside, base64.b64encode(bytes(32))))["tpm.nonce"] == "fail"


@pytest.mark.parametrize(
    ("part", "kind"), [("public_key", "tpm-public"), ("signature", "tpm-signature"), ("nonce", identify.UNKNOWN)]
)
def test_a_piece_alone_is_named_and_proves_nothing(quoted: dict[str, bytes], part: str, kind: str) -> None:
    for raw in (quoted[part], quoted[part].hex().encode()):
        found = inspected(raw)
        assert (found.kind, found.authentic()) == (kind, False)


def test_pcr_values_and_a_bare_key_alone(quoted: dict[str, bytes]) -> None:
    found = inspected(json.dumps({"sha256": {"0": "00" * 32}}).encode())
    assert (found.kind, found.facts["pcrs"], found.authentic()) == ("pcr-values", {"sha256": {"0": "00" * 32}}, False)
    key = VENDOR.chip.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    assert (inspected(key).kind, inspected(key).authentic()) == ("public-key", False)
    assert len(str(inspected(key).facts["spki_sha256"])) == 64
    assert inspected(quoted["public_key"]).facts["name"]
