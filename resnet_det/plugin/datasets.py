"""Register our synthetic detection datasets, and the user's own, in Detectron2's catalogs."""

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data import dataset_names, load_dataset
from ..data.catalog import DATASETS, ON_REGISTER


def register_dataset(name: str) -> None:
    """Register a dataset from our catalog. Its metadata are set when its records are first read.

    Raises:
        ValueError: Detectron2's catalog has a dataset of this name.
    """

    def records() -> list[dict]:
        dataset = load_dataset(name)
        meta = dataset.metadata
        MetadataCatalog.get(name).set(thing_classes=list(meta.classes), **meta.detectron2)
        return dataset.records

    if name in DatasetCatalog:
        raise ValueError(f"Detectron2's catalog has a dataset {name!r} already")
    DatasetCatalog.register(name, records)


ON_REGISTER.append(register_dataset)


# Published datasets that Detectron2 lacks (voc_2012_test) are left to the project that needs them:
# it may register them itself, which Detectron2 allows only once.
for _name in dataset_names():
    if DATASETS[_name].drawn:
        register_dataset(_name)
