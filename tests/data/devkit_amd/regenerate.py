"""Make the keys of this folder anew: ``python tests/data/devkit_amd/regenerate.py`` (takes some seconds)."""

from __future__ import annotations

from pathlib import Path

from cosmian_vm.devkit.amd import VendorKeys

FOLDER = Path(__file__).resolve().parent


def main() -> None:
    for folder in (FOLDER, FOLDER / "other"):
        folder.mkdir(exist_ok=True)
        VendorKeys.generate().save(folder)


if __name__ == "__main__":
    main()
