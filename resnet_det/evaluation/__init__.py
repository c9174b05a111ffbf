"""Evaluation: average precision (``voc_ap``, ``coco_ap``), classification errors, layer responses,
tables, figures and the report page. ``inputs`` describes the records and predictions they take."""
