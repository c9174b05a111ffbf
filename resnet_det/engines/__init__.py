"""The two thin engines that run a detector's config, and the classifier's.

An engine is a module with ``load_config(path, overrides)``, ``check(cfg, resume)``,
``train(cfg, resume)``, ``evaluate(cfg)`` and ``launch(...)``.
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
    if name != "torchvision" and importlib.util.find_spec("detectron2") is not None:
        try:
            return importlib.import_module(".on_detectron2.engine", __name__)
        except ImportError as error:
            problem = f"cannot be used: {error}"
    else:
        problem = "is not installed"
    if name == "detectron2":
        raise ValueError(
            f"engine 'detectron2': Detectron2 {problem}; see its install page, "
            "https://detectron2.readthedocs.io/en/latest/tutorials/install.html, "
            "or use --engine torchvision"
        )
    return importlib.import_module(".embedded", __name__)
