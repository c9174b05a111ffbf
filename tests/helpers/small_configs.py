"""The smallest configs of a classifier and of a detector."""

CLASSIFIER = {
    "MODEL": {
        "DEVICE": "cpu",
        "META_ARCHITECTURE": "Classifier",
        "BACKBONE": {"NAME": "cifar_resnet20"},
        "RESNETS": {"NORM": "BN"},
    },
    "INPUT": {"CROP": {"ENABLED": True, "TYPE": "absolute", "SIZE": [24, 24]}},
    "DATASETS": {
        "TRAIN": ["scenes_classification_train"],
        "TEST": ["scenes_classification_val"],
    },
    "SOLVER": {"IMS_PER_BATCH": 4, "MAX_ITER": 24, "STEPS": [16], "CHECKPOINT_PERIOD": 3},
    "TEST": {"PRECISE_BN": {"ENABLED": True, "NUM_ITER": 2}, "EVAL_PERIOD": 8},
    "SEED": 3,
}
DETECTOR = {
    "MODEL": {
        "DEVICE": "cpu",
        "BACKBONE": {"NAME": "cifar_resnet20", "FREEZE_AT": 0},
        "RESNETS": {"NORM": "BN", "OUT_FEATURES": ["res3"]},
        "ANCHOR_GENERATOR": {"SIZES": [[8, 16]]},
        "RPN": {
            "IN_FEATURES": ["res3"],
            "PRE_NMS_TOPK_TRAIN": 100,
            "PRE_NMS_TOPK_TEST": 100,
            "POST_NMS_TOPK_TRAIN": 20,
            "POST_NMS_TOPK_TEST": 10,
        },
        "ROI_HEADS": {
            "NAME": "PaperROIHeads",
            "IN_FEATURES": ["res3"],
            "NUM_CLASSES": 8,
            "BATCH_SIZE_PER_IMAGE": 8,
        },
        "ROI_BOX_HEAD": {"POOLER_RESOLUTION": 4},
    },
    "INPUT": {"MIN_SIZE_TRAIN": [32, 40, 48], "MIN_SIZE_TEST": 48},
    "DATASETS": {"TRAIN": ["scenes_voc_trainval"], "TEST": ["scenes_voc_test"]},
    "DATALOADER": {"NUM_WORKERS": 0},
    "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 24, "STEPS": [16], "CHECKPOINT_PERIOD": 3},
    "TEST": {"EVAL_PERIOD": 8},
    "SEED": 3,
}
