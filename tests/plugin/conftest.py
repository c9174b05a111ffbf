"""Detectron2's metadata of the drawn datasets are those of each test's own folder."""

import pytest


@pytest.fixture(autouse=True)
def own_metadata():
    """Forget them before each test: Detectron2 refuses to change a dataset's folder."""
    catalog = pytest.importorskip("detectron2.data").MetadataCatalog
    for name in [name for name in catalog if name.startswith(("scenes_", "miniature_"))]:
        catalog.pop(name)
