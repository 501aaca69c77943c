"""The law of the tree: who may import whom, and how large a room may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "cosmian_vm"
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 60

# A row: the modules it speaks of (a prefix), what of ours they may import, and what of others they must never import.
_NETWORK = {"socket", "ssl", "http", "urllib"}
_PURE_NEVER = _NETWORK | {"subprocess", "time", "random", "secrets", "os", "pathlib", "tempfile"}
_BASE = {"errors", "_reader"}
_VERIFIER = {"evidence", "endorsements", "certificates", "reference.snapshot", "reference.whitelist", "verifier"}
_VERIFIER |= {"reference.build_reference", "reference.tee_values", "ra_tls"}
LAW: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), _PURE_NEVER | {"cryptography", "msgspec"}),
    "_reader": ({"errors"}, _PURE_NEVER | {"cryptography", "msgspec"}),
    "_program": ({"errors"}, _NETWORK | {"subprocess", "cryptography", "msgspec"}),
    "_tss": ({"errors"}, _NETWORK | {"subprocess", "cryptography", "msgspec"}),
    "evidence": (_BASE | {"evidence"}, _PURE_NEVER | {"cryptography", "msgspec", "tpm2_pytss"}),
    "endorsements": (_BASE | {"evidence", "endorsements"}, {"socket", "ssl", "http", "urllib", "subprocess", "time"}),
    "endorsements.store": (_BASE | {"evidence", "endorsements"}, _NETWORK | {"subprocess", "time"}),
    "endorsements._fetch": (_BASE, {"subprocess", "cryptography"}),
    "endorsements._cache": (_BASE | {"endorsements._fetch"}, _NETWORK | {"subprocess", "cryptography"}),
    "endorsements._lookup": (
        _BASE | {"endorsements._fetch", "endorsements._cache"},
        {"socket", "ssl", "http", "subprocess", "cryptography"},
    ),
    "endorsements._kds": (_BASE | {"evidence", "endorsements"}, {"socket", "ssl", "http", "subprocess", "time"}),
    "endorsements._pcs": (_BASE | {"evidence", "endorsements"}, {"socket", "ssl", "http", "subprocess", "time"}),
    "certificates": (_BASE | {"evidence"}, {"socket", "ssl", "http", "urllib", "subprocess", "time", "os"}),
    "ra_tls": (_BASE | {"evidence"}, _PURE_NEVER),
    "reference._policies": (_BASE | {"evidence"}, _NETWORK | {"subprocess", "cryptography"}),
    "reference._files": (_BASE | {"reference._policies"}, _PURE_NEVER | {"cryptography"}),
    "reference.build_reference": (_BASE | {"reference._files", "reference._policies"}, _PURE_NEVER | {"cryptography"}),
    "reference.uki": (_BASE, _PURE_NEVER | {"cryptography"}),
    "reference.snapshot": (
        _BASE | {"evidence", "reference._files", "reference._policies"},
        _NETWORK | {"subprocess", "cryptography"},
    ),
    "reference.tee_values": (
        _BASE | {"evidence", "reference.snapshot"},
        _NETWORK | {"subprocess", "cryptography"},
    ),
    "reference.whitelist": (_BASE | {"evidence"}, _PURE_NEVER),
    "reference": (_BASE | {"evidence", "reference"}, {"socket", "ssl", "http", "cryptography"}),
    "verifier": (_BASE | _VERIFIER, _PURE_NEVER | {"tpm2_pytss"}),
    "inspection": (_BASE | _VERIFIER | {"inspection", "wire"}, _PURE_NEVER | {"tpm2_pytss"}),
    "attester": (_BASE | {"evidence", "attester", "_tss"}, {"http", "ssl", "urllib"}),
    "owner_proof": (_BASE, _PURE_NEVER | {"cryptography", "msgspec", "tpm2_pytss"}),
    "wire": (_BASE | {"evidence", "reference.snapshot"}, _NETWORK | {"subprocess", "cryptography"}),
    "client": (
        _BASE | {"evidence", "reference.snapshot", "certificates", "wire", "owner_proof", "client"},
        {"tpm2_pytss", "subprocess"},
    ),
    "agent": (
        _BASE | {"evidence", "attester", "reference", "wire", "owner_proof", "certificates", "agent", "luks", "_run"},
        {"http", "urllib"},
    ),
    "luks": (_BASE | {"luks", "_run", "_tss"}, _NETWORK | {"subprocess", "cryptography", "msgspec"}),
    "luks.pcrs": (_BASE, _PURE_NEVER | {"cryptography", "msgspec", "tpm2_pytss"}),
    "luks.header": (_BASE | {"luks._json"}, _PURE_NEVER | {"cryptography", "msgspec", "tpm2_pytss"}),
    "luks._json": (_BASE, _PURE_NEVER | {"cryptography", "msgspec", "tpm2_pytss"}),
    "luks.record": (_BASE, _PURE_NEVER | {"cryptography", "msgspec", "tpm2_pytss"}),
    "fstool": ({"errors", "luks", "agent.config", "_program"}, _NETWORK | {"subprocess", "cryptography", "tpm2_pytss"}),
    "certtool": (
        _BASE
        | _VERIFIER
        | {"_program", "certtool", "attester", "inspection"}
        | {"cli._common", "cli._options", "cli._roots", "cli._vendors", "cli.render"},
        {"tpm2_pytss", "subprocess"},
    ),
    "cli": (
        _BASE | _VERIFIER | {"_program", "cli", "client", "inspection", "wire", "owner_proof"},
        {"tpm2_pytss", "subprocess"},
    ),
}


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        yield ".".join(parts), path


def _imports(path: Path, module: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import in line {node.lineno}"
            assert node.module is not None
            if node.module.startswith("cosmian_vm"):
                for alias in node.names:
                    inner = PACKAGE / Path(*node.module.split(".")[1:]) / alias.name
                    is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                    yield node.lineno, f"{node.module}.{alias.name}" if is_module else node.module
            else:
                yield node.lineno, node.module


def _row(module: str) -> str | None:
    best = [row for row in LAW if module == row or module.startswith(row + ".")]
    return max(best, key=len) if best else None


def _within(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(room + ".") for room in rooms)


@pytest.mark.parametrize(("module", "path"), [pytest.param(m, p, id=m or "cosmian_vm") for m, p in _modules()])
def test_import_law(module: str, path: Path) -> None:
    row = _row(module)
    if row is None:
        assert module == "" or module.split(".")[0] in ("devkit", "_run"), f"{module} has no row in the law"
        return
    allowed, never = LAW[row]
    wrong = []
    for line, name in _imports(path, module):
        if name == "cosmian_vm":
            continue
        if name.startswith("cosmian_vm."):
            target = name.removeprefix("cosmian_vm.")
            if not _within(target, allowed):
                wrong.append(f"line {line}: {module} may not import {target}")
        elif name.split(".")[0] in never:
            wrong.append(f"line {line}: {module} may not import {name}")
    assert wrong == []


def test_nobody_imports_the_devkit() -> None:
    wrong = [
        f"{module}:{line}"
        for module, path in _modules()
        if not module.startswith("devkit")
        for line, name in _imports(path, module)
        if _within(name, {"cosmian_vm.devkit"})
    ]
    assert wrong == []


@pytest.mark.parametrize("path", [pytest.param(p, id=m or "cosmian_vm") for m, p in _modules()])
def test_rooms_are_small(path: Path) -> None:
    text = path.read_text()
    lines = text.count("\n")
    long = [
        f"{node.name} has {(node.end_lineno or 0) - node.lineno + 1} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert lines <= MAX_MODULE_LINES, f"{lines} lines"
    assert long == []


def _public(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return None


@pytest.mark.parametrize("path", [pytest.param(p, id=m) for m, p in _modules() if p.name != "__init__.py"])
def test_every_module_says_what_is_public(path: Path) -> None:
    if path.name == "__main__.py":
        return
    public = _public(ast.parse(path.read_text()))
    assert public is not None, "no __all__"


def test_no_registry_host_and_no_lock_file() -> None:
    root = PACKAGE.parent.parent
    for name in ("uv.lock", "poetry.lock", "Pipfile.lock"):
        assert not (root / name).exists()
    for path in (root / "requirements").glob("*"):
        text = path.read_text()
        assert "://" not in text, path
        assert "\n--" not in text, path
        assert not text.startswith("--"), path
    for line in (root / "requirements" / "runtime.txt").read_text().splitlines():
        assert not line or line[0] in " #" or "==" in line, line
