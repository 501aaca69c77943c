"""The whole way of an activation: evidence, a credential made for its keys, the agent's answer, from a software TPM."""

from __future__ import annotations

import json
import os
import shutil
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tpm2_pytss import ESAPI, TPM2B_PUBLIC, TPMT_PUBLIC

from cosmian_vm import wire
from cosmian_vm.attester.platform import Platform
from cosmian_vm.attester.tpm import EsapiTpm
from cosmian_vm.devkit.swtpm import Swtpm

pytestmark = pytest.mark.swtpm

NONCE = b64encode(bytes(32)).decode()


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[Swtpm]:
    if shutil.which("swtpm") is None or shutil.which("swtpm_setup") is None:
        pytest.skip("swtpm is not installed")
    (tmp_path / "tpm").mkdir()
    tpm = Swtpm(tmp_path / "tpm", ek_certificates=True)
    tpm.start()
    try:
        yield tpm
    finally:
        tpm.stop(orderly=False)


def body(tpm: Swtpm, ek_public: bytes, ak_public: bytes, credential: bytes) -> bytes:
    """Of a request: TPM2_MakeCredential needs no secret, so any TPM can do it."""
    ek, ak = (TPMT_PUBLIC.unmarshal(public)[0] for public in (ek_public, ak_public))
    with ESAPI(tpm.tcti) as esys:
        handle = esys.load_external(TPM2B_PUBLIC(publicArea=ek))
        blob, secret = esys.make_credential(handle, credential, bytes(ak.get_name()))
        esys.flush_context(handle)
    fields = {"credential_blob": blob.marshal(), "secret": secret.marshal()}
    return json.dumps({name: b64encode(value).decode() for name, value in fields.items()}).encode()


def test_activation(talk: Callable[..., Any], platform: Platform, tpm: Swtpm) -> None:
    device = EsapiTpm(tpm.tcti, keep_open=False)
    device.provision()
    credential = os.urandom(32)

    async def scenario(call: Any) -> None:
        reply = await call("POST", "/v2/evidence", json.dumps({"nonce": NONCE}).encode())
        told = msgspec.json.decode(reply.body, type=wire.EvidenceAnswer).tpm
        assert told is not None
        assert told.ek is not None
        assert len(told.ek.certificates) == 1
        reply = await call("POST", "/v2/activate", body(tpm, told.ek.public, told.ak_public, credential))
        assert reply.status == 200, reply.text
        assert msgspec.json.decode(reply.body, type=wire.ActivateAnswer).credential == credential
        reply = await call("POST", "/v2/activate", body(tpm, told.ek.public, told.ek.public, credential))
        assert (reply.status, "made for another EK or another AK" in reply.text) == (400, True)

    talk(scenario, platform=replace(platform, tpm=device))
