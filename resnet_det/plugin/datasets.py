"""Register our detection datasets in Detectron2's catalogs."""

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data import dataset_names, load_dataset


def register_dataset(name: str) -> None:
    """Register a dataset from our catalog. Its metadata are set when its records are first read."""

    def records() -> list[dict]:
        dataset = load_dataset(name)
        meta = dataset.metadata
        MetadataCatalog.get(name).set(thing_classes=list(meta.classes), **meta.detectron2)
        return dataset.records

    DatasetCatalog.register(name, records)


for _name in dataset_names():
    if _name not in DatasetCatalog:  # Detectron2 has its own voc_2007_trainval, and so on
        register_dataset(_name)
