"""Who may import whom: tools -> engines -> {config, data, evaluation, training} -> nets -> torch."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVEL = {
    "engines": 3, "config": 2, "data": 2, "evaluation": 2, "training": 2, "config_values": 1, "nets": 1,
}  # fmt: skip

MODULES = sorted((ROOT / "resnet_det").rglob("*.py"))
# The only modules that may import these, and do: the plugin and the engine, the embedded detector.
ALONE = {
    "detectron2": {
        "resnet_det/engines/detectron2_data.py",
        "resnet_det/engines/detectron2_evaluation.py",
        "resnet_det/engines/detectron2_plugin.py",
        "resnet_det/engines/detectron2_resume.py",
        "resnet_det/engines/detectron2_trainer.py",
        "resnet_det/engines/detectron2_weights.py",
        "resnet_det/engines/with_detectron2.py",
    },
    "torchvision.models.detection": {
        "resnet_det/engines/faster_rcnn.py",
        "resnet_det/engines/rpn.py",
    },
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


def part(module):
    """The part of the package that a module's name lies in, or None."""
    names = module.split(".")
    return names[1] if names[0] == "resnet_det" and len(names) > 1 and names[1] in LEVEL else None


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path):
    relative = str(path.relative_to(ROOT))
    own = part(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own is None:  # the package's own __init__ sees everything
        return
    for module in imports(path):
        other = part(module)
        if other is not None and other != own:
            assert LEVEL[other] < LEVEL[own], f"{relative} imports {module}"
        for name, only in ALONE.items():
            if module == name or module.startswith(name + "."):
                assert relative in only, f"{relative} imports {module}"


def test_nets_need_nothing_but_torch():
    for path in (ROOT / "resnet_det/nets").glob("*.py"):
        third = {m.split(".")[0] for m in imports(path)} - {"resnet_det", "torch"}
        if path.name == "weight_files.py":
            third -= {"safetensors"}
        assert third <= sys.stdlib_module_names, path


def test_the_modules_named_alone_really_import_it():
    for name, only in ALONE.items():
        for path in only:
            assert any(m.startswith(name) for m in imports(ROOT / path)), path


def test_the_plugin_needs_no_engine():
    """``import resnet_det`` in a foreign project brings no trainer, evaluator or report with it."""
    ours = set(filter(part, imports(ROOT / "resnet_det/engines/detectron2_plugin.py")))
    assert not any("engines.with_" in m or part(m) in ("training", "evaluation") for m in ours)
