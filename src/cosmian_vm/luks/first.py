"""The container's step of the agent's first launch."""

from __future__ import annotations

from collections.abc import Sequence

from cosmian_vm.errors import AttesterError
from cosmian_vm.luks._commands import Machine
from cosmian_vm.luks.container import Container
from cosmian_vm.luks.pcrs import DEFAULT_PCRS
from cosmian_vm.luks.place import Place
from cosmian_vm.luks.sizes import FIRST_SIZE

__all__ = ["Machine", "is_there", "look", "provide"]


def provide(
    place: Place,
    tpm: str,
    *,
    new_machine: bool,
    size: int = FIRST_SIZE,
    pcrs: Sequence[int] = DEFAULT_PCRS,
    machine: Machine | None = None,
) -> bool:
    """Open the container, or make it where there never was one. Idempotent; a kill at any point is made good here.

    ``new_machine``: the TPM holds no attestation key yet, so nothing can have been kept here. That is what tells a
    first launch from a machine whose container, header and record somebody has deleted: to pass for new, the
    attestation key must be deleted as well, and then `tpm.ak` fails. So this step comes *before* the keys are made.
    Gives whether it was made now. Raises AttesterError (locked, and why), InputError (no room).
    """
    container = Container(place, tpm, pcrs=pcrs, machine=machine)
    if container.exists():
        container.open()
        return False
    if not new_machine:
        raise AttesterError(
            f"{place.location}: there is no container, yet this machine has been set up before: none is made anew; put "
            "container and header back, or make one with `cosmian_fstool --size 500MB`"
        )
    container.create(size)
    return True


def is_there(place: Place, tpm: str) -> bool:
    """Whether there is a container, or was one: a file, a header, or a record in the TPM. Raises AttesterError."""
    return Container(place, tpm).exists()


def look(place: Place, tpm: str, *, pcrs: Sequence[int] = DEFAULT_PCRS, machine: Machine | None = None) -> str | None:
    """Why it is not open, in one line; None where it is. Nothing is opened or made. Raises InputError for the PCRs."""
    status = Container(place, tpm, pcrs=pcrs, machine=machine).status()
    return None if status.open else status.line
