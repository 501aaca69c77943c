"""One tree of errors, sorted and documented."""

from __future__ import annotations

from cosmian_vm import errors


def test_every_error_is_in_the_tree_and_exported() -> None:
    ours = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    assert sorted(ours) == sorted(errors.__all__)
    for name, value in ours.items():
        assert issubclass(value, errors.CosmianVmError), name
        assert value.__doc__, name


def test_a_format_error_is_one_line() -> None:
    error = errors.EvidenceFormatError("SNP report", "is short", offset=16, field="POLICY")
    assert str(error) == "SNP report, POLICY at offset 0x10: is short"
    assert str(errors.EvidenceFormatError("SNP report", "is short")) == "SNP report: is short"


def test_errors_with_a_status_carry_it() -> None:
    assert errors.RefusedError("no", status=403).status == 403
    assert errors.OrderError("busy", status=409).status == 409
    assert issubclass(errors.RefusedError, errors.TransportError)
    assert issubclass(errors.ConfigError, errors.InputError)
