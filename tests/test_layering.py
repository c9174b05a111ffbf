"""Which folders may import which: only downwards, without cycles."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A folder may import those on lower floors, and itself.
FLOORS = (
    ("files", "hints", "records"),
    ("nets", "config", "download"),
    ("weights", "evaluation"),
    ("data", "training"),
    ("detector",),
    ("plugin",),
    ("engines",),
    ("reproduce",),
    ("commands",),
)
FLOOR = {folder: floor for floor, folders in enumerate(FLOORS) for folder in folders}
MODULES = sorted((ROOT / "resnet_det").rglob("*.py"))
# The only folders that may import these.
ALONE = {
    "detectron2": {"plugin", "engines/on_detectron2"},
    "torchvision.models.detection": {"detector"},
}


def imports(path):
    """Absolute names of every module that a file imports, at its top or inside its functions."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def folder(module):
    """The folder of the package (or the file beside them) that a module's name lies in, or None."""
    names = module.split(".")
    return names[1] if names[0] == "resnet_det" and len(names) > 1 and names[1] in FLOOR else None


def test_every_folder_has_a_floor():
    inside = {p.relative_to(ROOT / "resnet_det").parts[0].removesuffix(".py") for p in MODULES}
    assert inside - {"__init__", "__main__"} == set(FLOOR)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    relative = str(path.relative_to(ROOT / "resnet_det"))
    own = folder(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own is None:  # the package's own __init__ and __main__ see everything
        return
    for module in imports(path):
        other = folder(module)
        if other is not None and other != own:
            assert FLOOR[other] < FLOOR[own], f"{relative} imports {module}"
        for name, only in ALONE.items():
            if module == name or module.startswith(name + "."):
                assert any(relative.startswith(f"{f}/") for f in only), f"{relative} imports {name}"


def test_no_circles():
    """Following a module's imports never leads back to the module."""
    names = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
             for p in MODULES}  # fmt: skip
    graph = {name: {m for m in imports(path) if m in names and m != name}
             for name, path in names.items()}  # fmt: skip
    packages = {name for name, path in names.items() if path.name == "__init__.py"}
    for name in graph.keys() - packages:
        seen, todo = set(), list(graph[name] - packages)
        while todo:
            module = todo.pop()
            assert module != name, f"{name} imports itself through {seen}"
            if module not in seen:
                seen.add(module)
                todo += graph[module] - packages


def test_nets_need_nothing_but_torch():
    for path in (ROOT / "resnet_det/nets").glob("*.py"):
        third = {m.split(".")[0] for m in imports(path)} - {"resnet_det", "torch"}
        assert third <= sys.stdlib_module_names, path


def test_a_foreign_project_gets_no_trainer_evaluator_or_report():
    """What ``import resnet_det`` loads into Detectron2: the plugin and what it imports."""
    for path in (ROOT / "resnet_det/plugin").glob("*.py"):
        assert not {folder(m) for m in imports(path)} & {"training", "evaluation", "engines"}, path
