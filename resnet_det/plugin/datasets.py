"""Our datasets in Detectron2's catalogs."""

from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data import Metadata, dataset_names, load_dataset


def metadata_fields(meta: Metadata) -> dict[str, Any]:
    """The fields that Detectron2's own evaluators and visualiser read."""
    fields = {"thing_classes": list(meta.classes)}
    if meta.kind == "voc":
        return fields | {
            "evaluator_type": "pascal_voc",
            "dirname": meta.dirname,
            "split": meta.split,
            "year": meta.year,
        }
    return fields | {
        "evaluator_type": "coco",
        "json_file": meta.json_file,
        "image_root": meta.image_root,
        "thing_dataset_id_to_contiguous_id": {
            id: i for i, id in enumerate(meta.category_ids or ())
        },
    }


def _register(name: str) -> None:
    def records() -> list[dict]:
        dataset = load_dataset(name)
        MetadataCatalog.get(name).set(**metadata_fields(dataset.metadata))
        return dataset.records

    DatasetCatalog.register(name, records)


for _name in dataset_names():
    if _name not in DatasetCatalog:  # Detectron2 has its own voc_2007_trainval, and so on
        _register(_name)
