"""The two thin engines that run a detector's config, and the classifier's.

An engine is a module with ``load_config(path, overrides)``, ``train(cfg, resume)``,
``evaluate(cfg)`` and ``launch(...)``.
"""

import importlib
import importlib.util

ENGINES = ("auto", "detectron2", "torchvision")


def pick(name="auto"):
    """The engine's module; "auto" is Detectron2 where it is installed, else the embedded one.

    Raises:
        ValueError: unknown name, or Detectron2 is asked for and not installed.
    """
    if name not in ENGINES:
        raise ValueError(f"engine {name!r}: use one of {', '.join(ENGINES)}")
    installed = importlib.util.find_spec("detectron2") is not None
    if name == "detectron2" and not installed:
        raise ValueError(
            "engine 'detectron2': Detectron2 is not installed; see its install page, "
            "https://detectron2.readthedocs.io/en/latest/tutorials/install.html, "
            "or use --engine torchvision"
        )
    module = "with_detectron2" if installed and name != "torchvision" else "with_torchvision"
    return importlib.import_module(f".{module}", __name__)
