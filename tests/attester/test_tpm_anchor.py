"""What vouches for our AK, against a real software TPM."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key
from hypothesis import given
from hypothesis import strategies as st
from tpm2_pytss import ESAPI, ESYS_TR, TPM2_CAP, TPM2B_PUBLIC, TPM2B_SENSITIVE_CREATE, TPMT_PUBLIC
from tpm2_pytss.constants import TPM2_HC

from cosmian_vm.attester.tpm import AK_HANDLE, EK_HANDLE, EsapiTpm
from cosmian_vm.attester.tpm_anchor import split_certificates
from cosmian_vm.devkit.swtpm import Swtpm
from cosmian_vm.devkit.tpm_maker import TpmMaker, give_platform_ak, nv_store, platform_ak_template
from cosmian_vm.errors import AttesterError, CredentialRefusedError, NotAvailableError
from cosmian_vm.evidence.bundle import PlatformAk
from cosmian_vm.evidence.tpm import Alg, parse_signature

pytestmark = pytest.mark.swtpm

DATA = bytes(range(32))
ECC, RSA = (0x01C10002, 0x01C10003), (0x01C10000, 0x01C10001)
ALGORITHMS = {ECC: "ecc256:ecdsa-sha256:null", RSA: "rsa2048:rsassa-sha256:null"}
HCL_AK = 0x81000003


@pytest.fixture(scope="module")
def maker() -> TpmMaker:
    return TpmMaker.create()


@pytest.fixture
def device(own_swtpm: Swtpm) -> EsapiTpm:
    device = EsapiTpm(own_swtpm.tcti, keep_open=False)
    device.provision()
    return device


@pytest.fixture
def certified_swtpm(tmp_path: Path) -> Iterator[Swtpm]:
    """One whose maker is swtpm_localca."""
    tpm = Swtpm(tmp_path / "certified", ek_certificates=True)
    (tmp_path / "certified").mkdir()
    tpm.start()
    try:
        yield tpm
    finally:
        tpm.stop(orderly=False)


def nothing_transient(tpm: Swtpm) -> bool:
    with ESAPI(tpm.tcti) as esys:
        for first in (TPM2_HC.TRANSIENT_FIRST, TPM2_HC.LOADED_SESSION_FIRST, TPM2_HC.ACTIVE_SESSION_FIRST):
            _more, data = esys.get_capability(TPM2_CAP.HANDLES, first, 8)
            if len(data.data.handles):
                return False
    return True


def name_of(public: bytes) -> bytes:
    return bytes(TPMT_PUBLIC.unmarshal(public)[0].get_name())


def key_of(public: bytes) -> Any:
    return load_der_public_key(TPMT_PUBLIC.unmarshal(public)[0].to_der())


def challenge(tpm: Swtpm, ek_public: bytes, ak_name: bytes, credential: bytes) -> tuple[bytes, bytes]:
    """TPM2_MakeCredential, which needs no secret: any TPM can do it for any EK."""
    area, _ = TPMT_PUBLIC.unmarshal(ek_public)
    with ESAPI(tpm.tcti) as esys:
        handle = esys.load_external(TPM2B_PUBLIC(publicArea=area))
        blob, secret = esys.make_credential(handle, credential, ak_name)
        esys.flush_context(handle)
    return bytes(blob.marshal()), bytes(secret.marshal())


def check_certified(told: PlatformAk, device: EsapiTpm, data: bytes = DATA) -> None:
    """The platform's key signed this, and it speaks of our AK and of ``data``."""
    key = key_of(told.public)
    assert x509.load_der_x509_certificate(told.certificates[0]).public_key() == key
    signature = parse_signature(told.signature)
    if isinstance(key, rsa.RSAPublicKey):
        assert signature.algorithm == Alg.RSASSA
        key.verify(told.signature[6:], told.attest, padding.PKCS1v15(), SHA256())
    else:
        raw = encode_dss_signature(int.from_bytes(signature.r), int.from_bytes(signature.s))
        key.verify(raw, told.attest, ec.ECDSA(SHA256()))
    assert told.attest[:6] == bytes.fromhex("ff544347" + "8017")  # TPM_GENERATED, TPM_ST_ATTEST_CERTIFY
    name = name_of(device.ak_public())
    assert len(data).to_bytes(2, "big") + data in told.attest
    assert len(name).to_bytes(2, "big") + name in told.attest


def test_a_tpm_without_any_certificate(device: EsapiTpm, own_swtpm: Swtpm) -> None:
    assert device.platform_ak(DATA) is None
    ek = device.ek()
    assert ek is not None
    assert ek.certificates == ()
    with ESAPI(own_swtpm.tcti) as esys:
        public = esys.read_public(esys.tr_from_tpmpublic(EK_HANDLE))[0]
        assert ek.public == bytes(public.publicArea.marshal())
    credential = os.urandom(32)
    blob, secret = challenge(own_swtpm, ek.public, name_of(device.ak_public()), credential)
    assert device.activate(blob, secret) == credential
    assert nothing_transient(own_swtpm)


def test_a_tpm_that_was_not_set_up(own_swtpm: Swtpm) -> None:
    device = EsapiTpm(own_swtpm.tcti, keep_open=False)
    assert device.ek() is None
    with pytest.raises(NotAvailableError, match="no attestation key"):
        device.platform_ak(DATA)
    with pytest.raises(NotAvailableError, match="no attestation key"):
        device.activate(b"", b"")
    device.provision()
    assert device.ek() is not None  # that there was none is not kept in mind


def test_credentials_for_other_keys_are_refused(device: EsapiTpm, own_swtpm: Swtpm) -> None:
    ek = device.ek()
    assert ek is not None
    name, credential = name_of(device.ak_public()), os.urandom(32)
    other_ek, _ = other_key(own_swtpm, "ecc256:aes128cfb", "restricted|decrypt|fixedtpm|fixedparent|userwithauth")
    good_blob, good_secret = challenge(own_swtpm, ek.public, name, credential)
    refused = [
        challenge(own_swtpm, ek.public, name[:-1] + bytes([name[-1] ^ 1]), credential),
        challenge(own_swtpm, other_ek, name, credential),
        (good_blob, b""),
        (b"", good_secret),
        (good_blob[:-1], good_secret),
        (good_blob + b"\0", good_secret),
        (good_blob, good_secret[:-1]),
        (good_blob, b"\x00\x04\x00\x01\x00\x01"),
        (b"\xff" * 200, good_secret),
        (good_blob[:-1] + bytes([good_blob[-1] ^ 1]), good_secret),
        (good_blob, good_secret[:-1] + bytes([good_secret[-1] ^ 1])),
    ]
    for blob, secret in refused:
        with pytest.raises(CredentialRefusedError) as caught:
            device.activate(blob, secret)
        assert "\n" not in str(caught.value)
        assert nothing_transient(own_swtpm)
    assert device.activate(good_blob, good_secret) == credential


def other_key(tpm: Swtpm, algorithm: str, attributes: str) -> tuple[bytes, bytes]:
    """TPMT_PUBLIC of another key of this TPM, and its template."""
    template = TPMT_PUBLIC.parse(algorithm, objectAttributes=attributes + "|sensitivedataorigin", nameAlg="sha256")
    with ESAPI(tpm.tcti) as esys:
        handle, public, *_ = esys.create_primary(
            TPM2B_SENSITIVE_CREATE(), TPM2B_PUBLIC(publicArea=template), ESYS_TR.OWNER
        )
        esys.flush_context(handle)
        return bytes(public.publicArea.marshal()), bytes(template.marshal())


@pytest.mark.parametrize("persistent", [True, False])
def test_the_makers_certificate_for_an_rsa_ek(certified_swtpm: Swtpm, persistent: bool) -> None:
    """swtpm_setup certifies RSA 2048 and P-384; ours is P-256, so the RSA one is what the TPM can be proved by."""
    if not persistent:
        with ESAPI(certified_swtpm.tcti) as esys:
            esys.evict_control(ESYS_TR.OWNER, esys.tr_from_tpmpublic(0x81010001), 0x81010001)
    device = EsapiTpm(certified_swtpm.tcti, keep_open=False)
    device.provision()
    ek = device.ek()
    assert ek is not None
    (certificate,) = (x509.load_der_x509_certificate(der) for der in ek.certificates)
    assert certificate.public_key() == key_of(ek.public)
    issuer, root = (x509.load_pem_x509_certificate(pem) for pem in certified_swtpm.ca_certificates)
    certificate.verify_directly_issued_by(issuer)
    issuer.verify_directly_issued_by(root)
    for _ in range(2):
        credential = os.urandom(32)
        challenged = challenge(certified_swtpm, ek.public, name_of(device.ak_public()), credential)
        assert device.activate(*challenged) == credential
        assert nothing_transient(certified_swtpm)
    certified_swtpm.reboot()
    again = EsapiTpm(certified_swtpm.tcti, keep_open=False)
    assert again.ek() == ek
    challenged = challenge(certified_swtpm, ek.public, name_of(again.ak_public()), b"credential")
    assert again.activate(*challenged) == b"credential"


def test_the_makers_certificate_for_our_own_ek_with_its_chain(
    device: EsapiTpm, own_swtpm: Swtpm, maker: TpmMaker
) -> None:
    ek = device.ek()
    assert ek is not None
    certificate = maker.ek_certificate(ek.public)
    nv_store(own_swtpm.tcti, 0x01C0000A, certificate, size=len(certificate) + 40)
    chain = b"".join(maker.chain)
    nv_store(own_swtpm.tcti, 0x01C00100, chain[:500])
    nv_store(own_swtpm.tcti, 0x01C00101, chain[500:], size=1000)
    assert device.ek() == ek  # looked up once
    fresh = EsapiTpm(own_swtpm.tcti, keep_open=False)
    told = fresh.ek()
    assert told is not None
    assert told.public == ek.public
    assert told.certificates == (certificate, *maker.chain)
    challenged = challenge(own_swtpm, told.public, name_of(fresh.ak_public()), b"credential")
    assert fresh.activate(*challenged) == b"credential"


@pytest.mark.parametrize("index", [0x01C0000A, 0x01C00002])
@pytest.mark.parametrize("content", ["of another key", b"\x30\x82\x00\x04none", b"", b"\xff" * 900])
def test_an_ek_certificate_that_is_not_ours_is_left_out(
    device: EsapiTpm, own_swtpm: Swtpm, maker: TpmMaker, index: int, content: str | bytes
) -> None:
    if isinstance(content, str):
        content = maker.ek_certificate(device.ak_public())
    nv_store(own_swtpm.tcti, index, content or b"\0")
    fresh = EsapiTpm(own_swtpm.tcti, keep_open=False)
    told = fresh.ek()
    assert told is not None
    assert told.certificates == ()
    assert told.public == device.ek().public  # type: ignore[union-attr] # it has one
    assert nothing_transient(own_swtpm)


@pytest.mark.parametrize("indices", [ECC, RSA])
def test_the_platforms_key_certifies_ours(
    device: EsapiTpm, own_swtpm: Swtpm, maker: TpmMaker, indices: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    public = give_platform_ak(own_swtpm.tcti, maker, indices, ALGORITHMS[indices])
    assert device.platform_ak(DATA) is None  # looked up once
    fresh = EsapiTpm(own_swtpm.tcti, keep_open=False)
    told = fresh.platform_ak(DATA)
    assert told is not None
    assert told.public == public
    maker_issued = x509.load_der_x509_certificate(told.certificates[0])
    maker_issued.verify_directly_issued_by(maker.issuer)
    check_certified(told, fresh)
    assert nothing_transient(own_swtpm)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the key was made again")

    with monkeypatch.context() as patch:
        patch.setattr(ESAPI, "create_primary", never)
        patch.setattr(ESAPI, "nv_read", never)
        again = fresh.platform_ak(bytes(64))
        assert again is not None
        check_certified(again, fresh, bytes(64))
    own_swtpm.reboot()  # the saved context is worth nothing now
    fresh._tcti = own_swtpm.tcti
    after = fresh.platform_ak(DATA)
    assert after is not None
    check_certified(after, fresh)
    assert nothing_transient(own_swtpm)
    with pytest.raises(AttesterError, match="65 bytes"):
        fresh.platform_ak(bytes(65))


def test_the_ecc_key_goes_first_and_a_broken_one_is_passed_over(
    device: EsapiTpm, own_swtpm: Swtpm, maker: TpmMaker, caplog: pytest.LogCaptureFixture
) -> None:
    rsa_public = give_platform_ak(own_swtpm.tcti, maker, RSA, ALGORITHMS[RSA])
    ecc_public = give_platform_ak(own_swtpm.tcti, maker, ECC, ALGORITHMS[ECC])

    def told() -> PlatformAk | None:
        return EsapiTpm(own_swtpm.tcti, keep_open=False).platform_ak(DATA)

    both = told()
    assert both is not None
    assert both.public == ecc_public
    nv_store(own_swtpm.tcti, ECC[0], maker.ak_certificate(device.ak_public()))
    other = told()
    assert other is not None
    assert other.public == rsa_public
    assert "NV index 0x01c10002 is left out: the certificate is that of another key" in caplog.text
    nv_store(own_swtpm.tcti, RSA[1], b"no template at all")
    caplog.clear()
    assert told() is None
    assert "NV index 0x01c10000 is left out" in caplog.text
    assert nothing_transient(own_swtpm)


def test_a_certificate_without_a_template_is_none(own_swtpm: Swtpm, device: EsapiTpm, maker: TpmMaker) -> None:
    nv_store(own_swtpm.tcti, ECC[0], maker.ak_certificate(device.ak_public()))
    assert EsapiTpm(own_swtpm.tcti, keep_open=False).platform_ak(DATA) is None
    nv_store(own_swtpm.tcti, ECC[1], platform_ak_template())
    assert EsapiTpm(own_swtpm.tcti, keep_open=False).platform_ak(DATA) is None


def hcl_key(tpm: Swtpm, algorithm: str, attributes: str) -> bytes:
    """What Azure's HCL does: a key of its own, persistent."""
    template = TPMT_PUBLIC.parse(algorithm, objectAttributes=attributes, nameAlg="sha256")
    with ESAPI(tpm.tcti) as esys:
        handle, public, *_ = esys.create_primary(
            TPM2B_SENSITIVE_CREATE(), TPM2B_PUBLIC(publicArea=template), ESYS_TR.ENDORSEMENT
        )
        esys.evict_control(ESYS_TR.OWNER, handle, HCL_AK)
        esys.flush_context(handle)
        return bytes(public.publicArea.marshal())


_HCL_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"


def test_a_platforms_own_ak_quotes_and_is_never_made_or_removed(own_swtpm: Swtpm) -> None:
    public = hcl_key(own_swtpm, "rsa2048:rsassa-sha256:null", _HCL_ATTRIBUTES)
    device = EsapiTpm(own_swtpm.tcti, ak_handle=HCL_AK, of_platform=True, keep_open=False)
    assert device.provisioned()
    device.provision()
    assert device.ak_public() == public
    quote = device.quote(DATA, range(16))
    assert parse_signature(quote.signature).algorithm == Alg.RSASSA
    key_of(public).verify(quote.signature[6:], quote.quote, padding.PKCS1v15(), SHA256())
    assert DATA in quote.quote
    assert (device.platform_ak(DATA), device.ek()) == (None, None)
    with pytest.raises(NotAvailableError):
        device.activate(b"", b"")
    with ESAPI(own_swtpm.tcti) as esys:
        _more, data = esys.get_capability(TPM2_CAP.HANDLES, TPM2_HC.PERSISTENT_FIRST, 8)
        assert [int(data.data.handles[i]) for i in range(len(data.data.handles))] == [HCL_AK]
    own = EsapiTpm(own_swtpm.tcti, keep_open=False)
    assert not own.provisioned()
    own.provision()
    assert own.quote(DATA, [10]).ak_public != public


def test_a_platforms_own_ak_that_is_not_there(own_swtpm: Swtpm) -> None:
    device = EsapiTpm(own_swtpm.tcti, ak_handle=HCL_AK, of_platform=True, keep_open=False)
    with pytest.raises(NotAvailableError, match="no attestation key at 0x81000003"):
        device.provision()


@pytest.mark.parametrize(
    ("algorithm", "attributes", "problem"),
    [
        ("rsa2048:rsassa-sha256", _HCL_ATTRIBUTES.replace("|restricted", ""), "not a restricted signing key"),
        ("rsa2048:rsapss-sha256:null", _HCL_ATTRIBUTES, "scheme other than ECDSA or RSASSA with SHA-256"),
        ("ecc384:ecdsa-sha384:null", _HCL_ATTRIBUTES, "not an RSA or ECC P-256 key"),
    ],
)
def test_a_platforms_key_that_is_no_ak(own_swtpm: Swtpm, algorithm: str, attributes: str, problem: str) -> None:
    hcl_key(own_swtpm, algorithm, attributes)
    device = EsapiTpm(own_swtpm.tcti, ak_handle=HCL_AK, of_platform=True, keep_open=False)
    with pytest.raises(AttesterError, match=problem) as caught:
        device.quote(DATA, [10])
    assert "evictcontrol" not in str(caught.value)  # it is not ours to remove


def test_an_rsa_key_at_our_own_handle_is_still_refused(own_swtpm: Swtpm) -> None:
    hcl_key(own_swtpm, "rsa2048:rsassa-sha256:null", _HCL_ATTRIBUTES)
    with pytest.raises(AttesterError, match="not an ECC P-256 key"):
        EsapiTpm(own_swtpm.tcti, ak_handle=HCL_AK, keep_open=False).ak_public()
    assert AK_HANDLE != HCL_AK


def test_certificates_one_behind_the_other(maker: TpmMaker) -> None:
    first, second = maker.chain
    assert split_certificates(first + second) == [first, second]
    assert split_certificates(first + second + bytes(100)) == [first, second]
    assert split_certificates(first + second[:-1]) == [first]
    assert split_certificates(b"") == split_certificates(b"\x30") == split_certificates(b"\xff" * 9) == []


def test_garbage_in_the_ek_template_costs_the_certificate_alone(
    certified_swtpm: Swtpm, caplog: pytest.LogCaptureFixture
) -> None:
    with ESAPI(certified_swtpm.tcti) as esys:
        esys.evict_control(ESYS_TR.OWNER, esys.tr_from_tpmpublic(0x81010001), 0x81010001)
    nv_store(certified_swtpm.tcti, 0x01C00004, b"no template")
    device = EsapiTpm(certified_swtpm.tcti, keep_open=False)
    device.provision()
    told = device.ek()
    assert told is not None
    assert told.certificates == ()
    assert "NV index 0x01c00002 is left out" in caplog.text


def test_a_tpm_that_fails_is_asked_again(own_swtpm: Swtpm, maker: TpmMaker, device: EsapiTpm) -> None:
    """What could not be looked up is not taken for absent."""
    give_platform_ak(own_swtpm.tcti, maker, ECC, ALGORITHMS[ECC])
    fresh = EsapiTpm(own_swtpm.tcti, keep_open=False)
    own_swtpm.stop()
    with pytest.raises(AttesterError):
        fresh.platform_ak(DATA)
    own_swtpm.start()
    fresh._tcti = own_swtpm.tcti
    assert fresh.platform_ak(DATA) is not None


@given(st.binary(max_size=600))
def test_certificates_in_any_bytes_are_pieces_of_them(raw: bytes) -> None:
    for content in (raw, b"\x30\x82\x01\x00" + raw):
        found = split_certificates(content)
        assert content.startswith(b"".join(found))
        assert all(len(der) >= 4 for der in found)
