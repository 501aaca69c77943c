"""What ``--with`` names is recognised by its content."""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.certificates import leaf_der, self_signed
from cosmian_vm.devkit.soft_tpm import SoftTpm
from cosmian_vm.inspection.material import classify, gather, parse_pcr_values
from cosmian_vm.inspection.model import CERTIFICATE, OTHER, PCR_VALUES, PUBLIC_KEY, TPM_PUBLIC, TPM_SIGNATURE


def kinds_of(raw: bytes) -> list[str]:
    return [item.kind for item in classify("file", raw, ())]


def binary_pcrs(values: dict[int, bytes], algorithm: int = 0x000B) -> bytes:
    """tpm2-tools' form, as ``tpm2_quote --pcr`` writes it."""
    mask = sum(1 << index for index in values)
    raw = struct.pack("<I", 1) + struct.pack("<HB", algorithm, 3) + mask.to_bytes(4, "little") + b"\0"
    raw += bytes(15 * 8)
    ordered = [values[index] for index in sorted(values)]
    lists = [ordered[i : i + 8] for i in range(0, len(ordered), 8)]
    raw += struct.pack("<I", len(lists))
    for digests in lists:
        raw += struct.pack("<I", len(digests))
        for digest in [*digests, *[b""] * (8 - len(digests))]:
            raw += struct.pack("<H", len(digest)) + digest.ljust(64, b"\0")
    return raw


PCRS = {index: bytes([index]) * 32 for index in range(16)}


class TestPcrValues:
    def test_binary(self) -> None:
        assert parse_pcr_values(binary_pcrs(PCRS)) == {"sha256": PCRS}

    def test_binary_every_truncation(self) -> None:
        raw = binary_pcrs(PCRS)
        assert all(parse_pcr_values(raw[:size]) is None for size in range(len(raw)))
        assert parse_pcr_values(raw + b"\0") is None

    def test_binary_digest_of_another_size(self) -> None:
        assert parse_pcr_values(binary_pcrs({0: bytes(20)})) is None
        assert parse_pcr_values(binary_pcrs({0: bytes(20)}, 0x0004)) == {"sha1": {0: bytes(20)}}

    def test_yaml(self) -> None:
        text = "  sha1:\n  sha256:\n" + "".join(f"    {i:<2}: 0x{v.hex().upper()}\n" for i, v in PCRS.items())
        assert parse_pcr_values(text.encode()) == {"sha256": PCRS}

    def test_json(self) -> None:
        text = json.dumps({"sha256": {str(i): v.hex() for i, v in PCRS.items()}})
        assert parse_pcr_values(text.encode()) == {"sha256": PCRS}

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{}",
            "[]",
            '{"sha256": 1}',
            '{"sha256": {"0": "00"}}',
            '{"sha256": {"x": ""}}',
            '{"sha256": {"0": 1}}',
            '{"md5": {"0": "00"}}',
            "sha256:\n  0: 0x00\n",
            "sha256:\nwords\n",
            "0: 0x00\n",
            "{" * 5000,
            '{"sha256": {"0": "' + "zz" * 32 + '"}}',
        ],
    )
    def test_none(self, text: str) -> None:
        assert parse_pcr_values(text.encode()) is None

    @given(st.binary(max_size=700))
    def test_total(self, raw: bytes) -> None:
        values = parse_pcr_values(raw)
        assert values is None or all(values.values())


class TestKinds:
    def test_certificates(self) -> None:
        made = self_signed("x", ["127.0.0.1"], now=datetime(2026, 1, 1, tzinfo=UTC))
        assert kinds_of(made.certificate_pem) == [CERTIFICATE]
        assert kinds_of(b"subject=x\n" + 2 * made.certificate_pem) == [CERTIFICATE, CERTIFICATE]
        der = leaf_der(made.certificate_pem)
        assert kinds_of(der) == [CERTIFICATE]
        assert kinds_of(der + b"\0") == [OTHER]
        assert classify("file", made.certificate_pem, ())[0].raw == der

    def test_public_key(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        assert kinds_of(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)) == [PUBLIC_KEY]
        assert kinds_of(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)) == [PUBLIC_KEY]

    def test_private_key_is_nothing_we_take(self) -> None:
        made = self_signed("x", ["127.0.0.1"], now=datetime(2026, 1, 1, tzinfo=UTC))
        assert kinds_of(made.key_pem) == [OTHER]

    def test_tpm_structures(self) -> None:
        tpm = SoftTpm(seed=b"x")
        quote = tpm.quote(b"nonce", [10])
        assert kinds_of(quote.ak_public) == [TPM_PUBLIC]
        assert kinds_of(quote.signature) == [TPM_SIGNATURE]
        prefixed = len(quote.ak_public).to_bytes(2, "big") + quote.ak_public
        assert classify("file", prefixed, ())[0].raw == quote.ak_public
        for raw in (quote.ak_public, quote.signature):
            assert all(kinds_of(raw[:size]) == [OTHER] for size in range(len(raw)))

    @pytest.mark.parametrize("raw", [b"", b"\0" * 32, b"Ai5M5SjYjnkyv4P7itH1", bytes(range(256)), b"-----BEGIN X-----"])
    def test_the_rest_is_kept(self, raw: bytes) -> None:
        assert kinds_of(raw) == [OTHER]
        assert classify("file", raw, ())[0].raw == raw

    @given(st.binary(max_size=300))
    def test_total(self, raw: bytes) -> None:
        assert kinds_of(raw)
        assert kinds_of(b"-----BEGIN CERTIFICATE-----\n" + raw + b"\n-----END CERTIFICATE-----\n")


def test_gather_keeps_the_order() -> None:
    material = gather([("b", b"nonce"), ("a", binary_pcrs(PCRS)), ("c", b"other nonce")], ())
    assert [(item.kind, item.name) for item in material.items] == [(OTHER, "b"), (PCR_VALUES, "a"), (OTHER, "c")]
    assert material.pcr("sha256", 3) == PCRS[3]
    assert material.pcr("sha1", 3) is None
    assert material.raw(OTHER) == (b"nonce", b"other nonce")


@pytest.mark.evidence
@pytest.mark.parametrize(
    ("file", "kinds"),
    [
        ("amd_ca/ask_ark_milan.pem", [CERTIFICATE, CERTIFICATE]),
        ("collateral/intel/google-parts/root_crl.der", ["crl"]),
        ("tpm/keylime-simulator/ak.tpm2b_public", [TPM_PUBLIC]),
        ("tpm/keylime-rsa/quote.pcrs", [PCR_VALUES]),
        ("tpm/keylime-rsa/quote.sig", [TPM_SIGNATURE]),
        ("azure/trustee-milan-v2/quote.sig", [OTHER]),
        ("azure/trustee-milan-v2/pcrs.json", [PCR_VALUES]),
        ("vm/uefi-tcb/pcrs.yaml", [PCR_VALUES]),
        ("vm/uefi-tcb/nonce", [OTHER]),
        ("ima/keys/rsa2048.pub.pem", [PUBLIC_KEY]),
    ],
)
def test_real_files(evidence: Path, file: str, kinds: list[str]) -> None:
    assert kinds_of((evidence / file).read_bytes()) == kinds
