"""Detectron2's registries, with the nearest names in their errors."""

from typing import Any

from detectron2.utils.registry import Registry

from ..hints import did_you_mean


def suggest_names(registry: Registry, key: str) -> None:
    """Add the nearest registered names to a registry's KeyError about an unknown one.

    Detectron2 looks a name up before any code of ours runs, and a registry has no hook, so this
    wraps the lookup. What it returns for a registered name stays the same, and so does an error
    without a near name.

    Args:
        key: the key of a config that holds the name.
    """
    get = registry.get

    def get_or_suggest(name: str) -> Any:
        try:
            return get(name)
        except KeyError as error:
            hint = did_you_mean(name, (known for known, _ in registry))
            if not hint:
                raise
            raise KeyError(f"{key}: {error.args[0]}{hint}") from error

    registry.get = get_or_suggest
