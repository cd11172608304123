"""Imports go one way, as docs/architecture.md draws it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# From the bottom up: a package imports itself and what stands on the lines before its own. A part
# of a package that has its own place stands apart from the package.
LINES = """
libai_ext.text libai_ext.files
libai_ext.errors
libai_ext.config libai_ext.device libai_ext.kernels
libai_ext.compat libai_ext.launch libai_ext.placement
libai_ext.checkpoint libai_ext.layers libai_ext.optim
libai_ext.data
libai_ext.engine libai_ext.startup
projects.MAE.former_names projects.MAE.modeling projects.MAE.option_types
projects.MAE.parallel projects.MAE.rules projects.MAE.weights
projects.MAE.encoder projects.MAE.modeling.targets.teacher projects.MAE.pictures
projects.MAE.__init__ projects.MAE.tasks
projects.MAE.run
projects.MAE.evaluation
projects.MAE.commands projects.MAE.configs projects.MAE.encoder_options projects.MAE.train_net
tools
"""
HEIGHT = {name: row for row, line in enumerate(LINES.split("\n")) for name in line.split()}
# They run before OneFlow or without it: what they import outside functions may not bring it.
WITHOUT_ENGINE = ("text", "files", "errors", "device", "kernels", "launch", "startup")
ENGINE = {"oneflow", "libai", "flowvision"}


def imports(nodes):
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:  # relative: the own package
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package(name: str) -> str | None:
    """That of LINES which a module, or a name in one, belongs to."""
    known = [known for known in HEIGHT if f"{name}.".startswith(f"{known}.")]
    return max(known, key=len, default=None)


@pytest.fixture(scope="module")
def sources() -> dict[str, ast.Module]:
    found = {}
    for top in ("libai_ext", "projects", "tools"):
        for path in sorted((ROOT / top).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name] = ast.parse(path.read_text())
    return found


def test_every_module_has_a_place(sources):
    outside = {name for name in sources if package(name) is None}
    assert outside == {"libai_ext.__init__"}


def test_imports_go_down(sources):
    found, wrong = set(), []
    for name, tree in sources.items():
        for imported in imports(ast.walk(tree)):
            own, other = package(name), package(imported)
            found.add((own, other))
            if other not in (None, own) and HEIGHT[other] >= HEIGHT[own]:
                wrong.append(f"{name} imports {imported}")
    assert wrong == []
    assert {("libai_ext.engine", "libai_ext.data"), ("tools", "projects.MAE.run")} <= found


def test_what_comes_before_the_engine_does_not_import_it(sources):
    early = {f"libai_ext.{name}" for name in WITHOUT_ENGINE}
    modules = [(name, tree) for name, tree in sources.items() if package(name) in early]
    assert len(modules) > 20
    wrong = []
    for name, tree in modules:
        for imported in imports(tree.body):
            known = package(imported)
            if imported.split(".")[0] in ENGINE or known not in {None, *early}:
                wrong.append(f"{name} imports {imported}")
    assert wrong == []
