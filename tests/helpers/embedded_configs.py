"""Small configs of the embedded engine, as YAML."""

DETECTOR = """
MODEL:
  DEVICE: cpu
  WEIGHTS: output/classifier/model_final.pth
  BACKBONE: {NAME: cifar_resnet20, FREEZE_AT: 2}
  RESNETS: {OUT_FEATURES: [res3]}
  ANCHOR_GENERATOR: {SIZES: [[16, 32]]}
  RPN: {IN_FEATURES: [res3], PRE_NMS_TOPK_TRAIN: 200, POST_NMS_TOPK_TRAIN: 50,
        PRE_NMS_TOPK_TEST: 100, POST_NMS_TOPK_TEST: 10}
  ROI_HEADS: {IN_FEATURES: [res3], NUM_CLASSES: 8, BATCH_SIZE_PER_IMAGE: 8,
              SCORE_THRESH_TEST: 0.0}
  ROI_BOX_HEAD: {POOLER_RESOLUTION: 8}
INPUT: {MIN_SIZE_TRAIN: [48], MIN_SIZE_TEST: 48}
DATASETS: {TRAIN: [scenes_voc_trainval], TEST: [scenes_voc_test, scenes_coco_test]}
DATALOADER: {NUM_WORKERS: 0}
SOLVER: {IMS_PER_BATCH: 2, BASE_LR: 0.01, MAX_ITER: 6, STEPS: [4], WARMUP_ITERS: 2,
         CHECKPOINT_PERIOD: 3}
RESNET_DET: {PRETRAIN: classifier.yaml}
OUTPUT_DIR: output/detector
SEED: 3
"""


CLASSIFIER = """
MODEL:
  DEVICE: cpu
  META_ARCHITECTURE: Classifier
  BACKBONE: {NAME: cifar_resnet20}
  RESNETS: {NORM: BN}
INPUT: {CROP: {ENABLED: True, TYPE: absolute, SIZE: [32, 32]}}
DATASETS: {TRAIN: [scenes_classification_train], TEST: [scenes_classification_val]}
SOLVER: {IMS_PER_BATCH: 16, BASE_LR: 0.1, MAX_ITER: 4, STEPS: [3], WARMUP_ITERS: 0}
TEST: {PRECISE_BN: {ENABLED: True, NUM_ITER: 3}}
OUTPUT_DIR: output/classifier
SEED: 3
"""
