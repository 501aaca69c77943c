"""The policy file: every key, every mistake, and back."""

from __future__ import annotations

import pytest

from cosmian_vm.errors import InputError
from cosmian_vm.evidence.bundle import TeeKind
from cosmian_vm.verifier.policy import Policy, SnpRules
from cosmian_vm.verifier.policy_file import PolicyFile, parse_policy, show_policy

WHOLE = f"""
roots = ["own.pem"]
[checks]
required = ["tls.application"]
no_warning = ["vm.owner", "tpm.ak"]
strict = true
[tee]
kinds = ["sev-snp"]
[amd]
vmpl = 2
minimum_abi = "1.55"
smt = false
single_socket = true
host_data = "{"ab" * 32}"
id_key_digests = ["{"01" * 48}"]
author_key_digests = ["{"02" * 48}"]
platform_info_set = ["ecc_en"]
platform_info_clear = ["smt_en", "rapl_dis"]
[amd.minimum_tcb.Milan]
snp = 24
ucode = 219
[amd.minimum_tcb.Turin]
fmc = 1
[intel]
accepted_statuses = ["OutOfDate"]
accepted_advisories = ["INTEL-SA-00615"]
pccs = "https://pccs.example.com:8081"
[tpm]
anchors = ["tee", "certificate"]
roots = ["maker.pem"]
operator_roots = ["cloud.pem"]
"""

POLICY = Policy(
    strict=True,
    required=frozenset({"tls.application"}),
    no_warning=frozenset({"vm.owner", "tpm.ak"}),
    kinds=frozenset({TeeKind.SNP}),
    anchors=frozenset({"tee", "certificate"}),
    vmpl=2,
    minimum_tcb={"Milan": {"snp": 24, "ucode": 219}, "Turin": {"fmc": 1}},
    snp=SnpRules(
        minimum_abi=(1, 55),
        smt=False,
        single_socket=True,
        host_data=b"\xab" * 32,
        id_key_digests=frozenset({b"\x01" * 48}),
        author_key_digests=frozenset({b"\x02" * 48}),
        platform_set=frozenset({"ecc_en"}),
        platform_clear=frozenset({"smt_en", "rapl_dis"}),
    ),
    tcb_statuses=frozenset({"OutOfDate"}),
    advisories=frozenset({"INTEL-SA-00615"}),
)


def test_every_key() -> None:
    assert parse_policy(WHOLE.encode(), "p") == PolicyFile(
        policy=POLICY,
        roots=("own.pem",),
        tpm_roots=("maker.pem",),
        operator_roots=("cloud.pem",),
        pccs="https://pccs.example.com:8081",
    )


def test_an_empty_file_is_the_default() -> None:
    assert parse_policy(b"", "p") == PolicyFile()
    assert PolicyFile().policy == Policy()


@pytest.mark.parametrize("text", ["", WHOLE])
def test_what_is_shown_is_a_policy_file(text: str) -> None:
    file = parse_policy(text.encode(), "p")
    assert parse_policy(show_policy(file).encode(), "shown") == file


def test_the_comments_of_the_default_are_keys() -> None:
    """Whoever takes the number sign away from a line of `policy show` must get what the line says."""
    shown = show_policy(PolicyFile())
    commented = [
        line for line in shown.splitlines() if line.startswith("# ") and " = " in line and "." not in line[:12]
    ]
    assert len(commented) == 7
    for line in commented:
        if line != "# snp = 24":
            parse_policy(shown.replace(line, line[2:]).encode(), "p")


def test_a_wrong_name_is_told_with_the_right_ones() -> None:
    with pytest.raises(InputError) as caught:
        parse_policy(b"[tee]\nkinds = ['sev']", "p.toml")
    told = "p.toml: tee.kinds[0]: 'sev' is not one of sev-snp, sgx, tdx (cosmian_vm policy show explains every key)"
    assert str(caught.value) == told
    with pytest.raises(InputError, match=r"^p.toml: intel: unknown key tcb \(cosmian_vm policy show"):
        parse_policy(b"[intel]\ntcb = 1", "p.toml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[checks]\nrequire = []", "require"),
        ("[amd]\nvmpl = 4", "vmpl"),
        ("[amd]\nvmpl = '0'", "vmpl"),
        ("[amd]\nminimum_abi = '1'", "minimum_abi"),
        ("[amd]\nminimum_abi = '1.999'", "minimum_abi"),
        ("[amd]\nhost_data = 'ab'", "host_data"),
        ("[amd]\nid_key_digests = ['zz']", "id_key_digests"),
        ("[amd]\nplatform_info_set = ['smt']", "'smt'"),
        ("[amd.minimum_tcb.Rome]\nsnp = 1", "'Rome'"),
        ("[amd.minimum_tcb.Milan]\nspl = 1", "'spl'"),
        ("[amd.minimum_tcb.Milan]\nsnp = 256", "minimum_tcb"),
        ("[checks]\nrequired = ['tee.everything']", "'tee.everything'"),
        ("[checks]\nno_warning = ['tpm']", "'tpm'"),
        ("[tee]\nkinds = ['sev']", "sev"),
        ("[intel]\naccepted_statuses = ['Revoked']", "accepted_statuses"),
        ("[intel]\naccepted_advisories = ['615']", "'615'"),
        ("[tpm]\nanchors = ['me']", "anchors"),
        ("[tpm]\nroots = 'maker.pem'", "roots"),
        ("a = [", "TOML"),
        ("\xff", "p"),
        ("tee = 1", "tee"),
    ],
)
def test_mistakes_are_one_line_that_names_file_and_key(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_policy(text.encode("latin-1"), "policy.toml")
    line = str(caught.value)
    assert line.startswith("policy.toml: ")
    assert "\n" not in line
    assert words in line


@pytest.mark.parametrize("text", ["roots = " + "[" * 9999 + "]" * 9999, "a = " + "{a = " * 9999 + "1" + "}" * 9999])
def test_nested_without_end(text: str) -> None:
    with pytest.raises(InputError, match=r"^p: is not TOML"):
        parse_policy(text.encode(), "p")
