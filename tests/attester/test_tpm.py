from __future__ import annotations

import os
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256
from tpm2_pytss import ESAPI, ESYS_TR, TPM2_CAP, TPMA_NV, TPML_DIGEST_VALUES
from tpm2_pytss.constants import TPM2_ALG, TPM2_HC
from tpm2_pytss.types import (
    TPM2B_NV_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMS_NV_PUBLIC,
    TPMT_HA,
    TPMU_HA,
)

from cosmian_vm._tss import read_pcrs
from cosmian_vm.attester import tpm as module
from cosmian_vm.attester.tpm import AK_HANDLE, EK_HANDLE, EsapiTpm
from cosmian_vm.devkit.swtpm import Swtpm
from cosmian_vm.errors import AttesterError, NotAvailableError

pytestmark = pytest.mark.swtpm

NONCE = bytes(range(32))


def extend(esys: ESAPI, index: int, digest: bytes) -> None:
    value = TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=digest))
    esys.pcr_extend(ESYS_TR.PCR0 + index, TPML_DIGEST_VALUES([value]))


@pytest.fixture
def device(shared_swtpm: Swtpm) -> EsapiTpm:
    device = EsapiTpm(shared_swtpm.tcti, keep_open=False)
    device.provision()
    return device


def verify(quote: Any) -> None:
    """An independent look: the last 64 bytes of the key, r and s cut out of TPMT_SIGNATURE by hand."""
    x, y = quote.ak_public[-66:-34][-32:], quote.ak_public[-32:]
    assert quote.ak_public[-34:-32] == b"\x00\x20"
    key = ec.EllipticCurvePublicNumbers(int.from_bytes(x), int.from_bytes(y), ec.SECP256R1()).public_key()
    assert quote.signature[:4] == bytes.fromhex("0018000b")
    r, s = quote.signature[6:38], quote.signature[40:72]
    key.verify(utils.encode_dss_signature(int.from_bytes(r), int.from_bytes(s)), quote.quote, ec.ECDSA(SHA256()))


def test_quote_is_signed_and_covers_what_was_asked(device: EsapiTpm) -> None:
    quote = device.quote(NONCE, range(16))
    verify(quote)
    assert NONCE in quote.quote
    assert sorted(quote.pcrs) == list(range(16))
    digest = sha256(b"".join(quote.pcrs[i] for i in range(16))).digest()
    assert quote.quote.endswith(bytes.fromhex("00000001000b03ffff000020") + digest)


def test_quote_over_one_pcr_only(device: EsapiTpm) -> None:
    quote = device.quote(b"", [10])
    assert list(quote.pcrs) == [10]
    assert quote.quote.endswith(bytes.fromhex("00000001000b030004000020") + sha256(quote.pcrs[10]).digest())


def test_provision_is_idempotent_and_survives_a_power_cycle(own_swtpm: Swtpm) -> None:
    first = EsapiTpm(own_swtpm.tcti, keep_open=False)
    first.provision()
    public = first.ak_public()
    first.provision()
    own_swtpm.reboot()
    again = EsapiTpm(own_swtpm.tcti, keep_open=False)
    again.provision()
    assert again.ak_public() == public


def test_provision_goes_on_after_a_crash_between_ek_and_ak(own_swtpm: Swtpm) -> None:
    device = EsapiTpm(own_swtpm.tcti, keep_open=False)
    device.provision()
    with ESAPI(own_swtpm.tcti) as esys:
        ek = bytes(esys.read_public(esys.tr_from_tpmpublic(EK_HANDLE))[1])
        esys.evict_control(ESYS_TR.OWNER, esys.tr_from_tpmpublic(AK_HANDLE), AK_HANDLE)
    fresh = EsapiTpm(own_swtpm.tcti, keep_open=False)
    with pytest.raises(NotAvailableError, match="no attestation key"):
        fresh.ak_public()
    fresh.provision()
    with ESAPI(own_swtpm.tcti) as esys:
        assert bytes(esys.read_public(esys.tr_from_tpmpublic(EK_HANDLE))[1]) == ek
    verify(fresh.quote(NONCE, range(16)))


def check_nothing_transient(esys: ESAPI) -> None:
    for first in (TPM2_HC.TRANSIENT_FIRST, TPM2_HC.LOADED_SESSION_FIRST, TPM2_HC.ACTIVE_SESSION_FIRST):
        _more, data = esys.get_capability(TPM2_CAP.HANDLES, first, 8)
        assert len(data.data.handles) == 0


def test_nothing_transient_is_left_behind(device: EsapiTpm, shared_swtpm: Swtpm) -> None:
    device.quote(NONCE, range(16))
    with ESAPI(shared_swtpm.tcti) as esys:
        check_nothing_transient(esys)


@pytest.mark.parametrize(
    ("algorithm", "problem"),
    [
        ("rsa2048", "not an ECC P-256 key"),
        ("ecc256:ecdsa-sha256", "restricted signing key"),
        ("ecc384:ecdsa-sha384", "not an ECC P-256 key"),
    ],
)
def test_a_foreign_object_at_the_handle_is_named_and_kept(own_swtpm: Swtpm, algorithm: str, problem: str) -> None:
    attributes = "sign|fixedtpm|fixedparent|sensitivedataorigin|userwithauth"
    from tpm2_pytss import TPM2B_PUBLIC

    with ESAPI(own_swtpm.tcti) as esys:
        template = TPM2B_PUBLIC.parse(algorithm, objectAttributes=attributes)
        handle, *_ = esys.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.OWNER)
        esys.evict_control(ESYS_TR.OWNER, handle, AK_HANDLE)
        esys.flush_context(handle)
    device = EsapiTpm(own_swtpm.tcti, keep_open=False)
    with pytest.raises(AttesterError, match=problem):
        device.provision()
    with pytest.raises(AttesterError, match="tpm2_evictcontrol"):
        device.quote(NONCE, range(16))


def test_a_full_tpm_is_told_with_the_remedy(own_swtpm: Swtpm) -> None:
    """Persistent objects until there is room for no other."""
    from tpm2_pytss import TPM2B_PUBLIC, TSS2_Exception

    with ESAPI(own_swtpm.tcti) as esys:
        template = TPM2B_PUBLIC.parse(
            "ecc256:ecdsa-sha256", objectAttributes="sign|fixedtpm|fixedparent|userwithauth|sensitivedataorigin"
        )
        handle, *_ = esys.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.OWNER)

        def fill() -> None:
            for slot in range(256):
                esys.evict_control(ESYS_TR.OWNER, handle, 0x81010000 + slot)

        with pytest.raises(TSS2_Exception):
            fill()
        esys.flush_context(handle)
    device = EsapiTpm(own_swtpm.tcti, keep_open=False)
    with pytest.raises(AttesterError, match=r"memory is full; see .*tpm2_getcap handles-persistent") as caught:
        device.provision()
    assert "\n" not in str(caught.value)
    assert not device.provisioned()
    with ESAPI(own_swtpm.tcti) as esys:  # nothing transient is left of the attempt
        check_nothing_transient(esys)
        for slot in (0, 1):
            esys.evict_control(ESYS_TR.OWNER, esys.tr_from_tpmpublic(0x81010000 + slot), 0x81010000 + slot)
    device.provision()
    assert device.provisioned()


def test_quote_waits_for_values_that_belong_to_it(
    device: EsapiTpm, shared_swtpm: Swtpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = read_pcrs, 0

    def busy(esys: ESAPI, pcrs: list[int]) -> dict[int, bytes]:
        nonlocal calls
        calls += 1
        if calls <= 3:
            extend(esys, 10, bytes([calls]) * 32)
        values = real(esys, pcrs)
        if calls <= 3:
            extend(esys, 10, bytes([calls + 100]) * 32)
        return values

    monkeypatch.setattr(module, "read_pcrs", busy)
    quote = device.quote(NONCE, range(16))
    assert calls > 3
    assert quote.quote[-32:] == sha256(b"".join(quote.pcrs[i] for i in range(16))).digest()


def test_quote_gives_up_where_the_pcrs_never_rest(device: EsapiTpm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_pcrs", lambda _esys, pcrs: dict.fromkeys(pcrs, bytes(32)) | {10: b"\x01" * 32})
    with pytest.raises(AttesterError, match="measured again and again"):
        device.quote(NONCE, range(16))


def test_bounds_of_a_quote(device: EsapiTpm) -> None:
    assert bytes(64) in device.quote(bytes(64), [10]).quote
    with pytest.raises(AttesterError, match="65 bytes"):
        device.quote(bytes(65), [10])
    for pcrs in ([], [-1], [24]):
        with pytest.raises(AttesterError, match="PCRs"):
            device.quote(NONCE, pcrs)


def nv_define(esys: ESAPI, index: int, content: bytes, attributes: TPMA_NV) -> None:
    public = TPM2B_NV_PUBLIC(
        nvPublic=TPMS_NV_PUBLIC(nvIndex=index, nameAlg=TPM2_ALG.SHA256, attributes=attributes, dataSize=len(content))
    )
    handle = esys.nv_define_space(None, public)
    for start in range(0, len(content), 512):
        esys.nv_write(handle, content[start : start + 512], start, auth_handle=ESYS_TR.OWNER)


@pytest.mark.parametrize("attributes", [TPMA_NV.OWNERREAD, TPMA_NV.AUTHREAD])
def test_nv_read_in_chunks(own_swtpm: Swtpm, attributes: TPMA_NV) -> None:
    content = bytes(i % 251 for i in range(2000))
    with ESAPI(own_swtpm.tcti) as esys:
        nv_define(esys, 0x1800001, content, TPMA_NV.OWNERWRITE | attributes)
    device = EsapiTpm(own_swtpm.tcti, keep_open=False)
    assert device.nv_read(0x1800001) == content
    with pytest.raises(NotAvailableError, match="0x01800002"):
        device.nv_read(0x1800002)


def test_many_threads_one_context(shared_swtpm: Swtpm) -> None:
    device = EsapiTpm(shared_swtpm.tcti)
    device.provision()
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for i in range(5):
                nonce = bytes([number, i]) * 16
                quote = device.quote(nonce, range(16))
                verify(quote)
                assert nonce in quote.quote
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    device.close()
    assert not failures


def test_a_tpm_that_comes_back_is_used_again(own_swtpm: Swtpm) -> None:
    device = EsapiTpm(own_swtpm.tcti)
    device.provision()
    tcti = own_swtpm.tcti
    own_swtpm.stop(orderly=False)
    with pytest.raises(AttesterError):
        device.quote(NONCE, range(16))
    with pytest.raises(NotAvailableError, match="cannot be opened"):
        device.quote(NONCE, range(16))
    own_swtpm.start()
    assert own_swtpm.tcti == tcti
    verify(device.quote(NONCE, range(16)))
    device.close()


def test_no_such_device() -> None:
    with pytest.raises(NotAvailableError, match="/nowhere/tpm"):
        EsapiTpm("device:/nowhere/tpm").provision()
    with pytest.raises(NotAvailableError, match="cannot be opened"):
        EsapiTpm("nonsense:").ak_public()


# With what is imported where a TPM is served; a first launch does without.
_SERVE = """
import sys
import cosmian_vm.agent.devices
from cosmian_vm.attester.tpm import EsapiTpm

device = EsapiTpm(sys.argv[1])
device.provision()
seen = []
sys.addaudithook(lambda event, args: seen.append((event, args[0])) if event in ("open", "import", "exec") else None)
device.quote(b"nonce", range(16))
device.ak_public()
device.ek()
device.platform_ak(b"nonce")
print(seen)
device.close()
"""


def test_serving_loads_no_file(shared_swtpm: Swtpm) -> None:
    """What is first loaded when a call comes would stand in the IMA list after the snapshot."""
    done = subprocess.run(
        [sys.executable, "-c", _SERVE, shared_swtpm.tcti],
        env={**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
