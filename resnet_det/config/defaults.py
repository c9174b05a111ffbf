"""Every key with its default, and the values that the embedded engine honours."""

from fvcore.common.config import CfgNode


class ConfigError(ValueError):
    """A config file, key or value that cannot be honoured."""


# Values that the embedded engine honours, where it does not honour all; the first is the default.
CHOICES = {
    "VERSION": (2,),
    "MODEL.META_ARCHITECTURE": ("GeneralizedRCNN", "ProposalNetwork", "Classifier"),
    "MODEL.MASK_ON": (False,),
    "MODEL.KEYPOINT_ON": (False,),
    "MODEL.LOAD_PROPOSALS": (False, True),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RPN", "PrecomputedProposals"),
    "MODEL.ANCHOR_GENERATOR.NAME": ("DefaultAnchorGenerator",),
    "MODEL.RPN.HEAD_NAME": ("StandardRPNHead",),
    "MODEL.RPN.IOU_LABELS": ([0, -1, 1],),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
    "MODEL.ROI_HEADS.NAME": ("Res5ROIHeads", "PaperROIHeads", "StandardROIHeads"),
    "MODEL.ROI_HEADS.IOU_LABELS": ([0, 1], [-1, 0, 1], [0, -1, 1]),
    "MODEL.ROI_BOX_HEAD.NAME": ("", "FastRCNNConvFCHead"),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": (0,),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": ("smooth_l1",),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ("ROIAlignV2", "ROIAlign", "ROIPool"),
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": (False,),
    "MODEL.RESNETS.NORM": ("FrozenBN", "BN", "SyncBN", "GN", ""),  # "": VGG-16
    "MODEL.RESNETS.RES5_DILATION": (1, 2),
    "MODEL.FPN.NORM": ("",),
    "MODEL.FPN.FUSE_TYPE": ("sum",),
    "INPUT.FORMAT": ("BGR", "RGB"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "none"),
    "INPUT.CROP.ENABLED": (False, True),
    "INPUT.CROP.TYPE": ("relative_range", "absolute"),
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler",),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR",),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ("value", "norm"),
    "TEST.AUG.ENABLED": (False, True),  # True: classifiers only
}


# Heads that MASK_ON and KEYPOINT_ON switch off: their keys say nothing here, as in Detectron2.
SWITCHED_OFF = ("MODEL.ROI_MASK_HEAD.", "MODEL.ROI_KEYPOINT_HEAD.")


def add_resnet_det_config(cfg):
    """Add the node ``RESNET_DET`` to a config, Detectron2's or ours."""
    cfg.RESNET_DET = type(cfg)()  # yacs merges nodes of one class only
    # Config of the classifier that MODEL.WEIGHTS comes from: it is trained first where that file
    # does not exist. Like all paths, relative to the working folder.
    cfg.RESNET_DET.PRETRAIN = ""
    # Layers that start fresh, whatever MODEL.WEIGHTS holds: the first parts of their parameters'
    # names, such as ("fc6", "fc7") or ("roi_heads.box_predictor",). Any other miss is an error.
    cfg.RESNET_DET.NEW_LAYERS = ()
    # Train on objects that VOC marks as difficult. Detectron2 does, py-faster-rcnn does not.
    cfg.RESNET_DET.USE_DIFFICULT = True
    # Classes of checkpoints and datasets are matched by name. True: by their order, where the same
    # classes have other names; their numbers must be equal.
    cfg.RESNET_DET.CLASSES_BY_ORDER = False
    # Leave out broken training images and annotations, with a count, instead of ending the run.
    cfg.RESNET_DET.SKIP_BAD_DATA = False
    # Decode the test images before training and stop if one is unusable; what was decoded before is
    # not decoded again (resnet_det/data/image_check.py). Images in tar shards are not checked.
    cfg.RESNET_DET.CHECK_IMAGES = True
    # Zero pixels around a classifier's training image before the crop (4 on CIFAR, section 4.2).
    cfg.RESNET_DET.CROP_PADDING = 0
    # Subtract the mean image of a classifier's training set (section 4.2) instead of PIXEL_MEAN,
    # which must be its mean: a detector on these weights subtracts that. Checkpoints carry it.
    cfg.RESNET_DET.PER_PIXEL_MEAN = False
    # Warm-up by a rule (section 4.2, 110 layers): a classifier stays at WARMUP_FACTOR * BASE_LR
    # until its running training error is below so many per cent. 0: by WARMUP_ITERS.
    cfg.RESNET_DET.WARMUP_UNTIL_ERROR = 0.0
    # AlexNet's colour augmentation of a classifier's training images (section 3.4).
    cfg.RESNET_DET.COLOR_PCA = False
    # Crops of a classifier's test image: 1 (the centre) or 10 (with the corners, and mirrored).
    cfg.RESNET_DET.TEST_CROPS = 1
    # Further checkpoints, each of which carries its config, for a test together with MODEL.WEIGHTS:
    # classifiers (Table 5: the mean of their softmax) or detectors (Appendix B).
    cfg.RESNET_DET.ENSEMBLE = ()
    # Fold constant batch norms, compute no cell that nobody reads, keep channels last: the same
    # results and checkpoints sooner (resnet_det/nets/fast.py). False to compare.
    cfg.RESNET_DET.FAST = True
    # Iterations of the 4 steps of alternating training (tools/train_alternating.py): RPN, Fast
    # R-CNN, RPN, Fast R-CNN. The released code's for VOC 07.
    cfg.RESNET_DET.ALTERNATING = (80000, 40000, 80000, 40000)
    # Appendix B (Table 9), see resnet_det/detector/appendix.py. Context is a part of the net, for
    # training and test; the others are for the test alone.
    cfg.RESNET_DET.GLOBAL_CONTEXT = False
    cfg.RESNET_DET.BOX_REFINEMENT = False
    cfg.RESNET_DET.MULTI_SCALE_TEST = ()  # shorter sides, ascending; the paper's 200, 400 ... 1000


def get_cfg():
    """A fresh config with the defaults; a key that is not in it is refused when merging."""
    cfg = CfgNode()
    cfg.MODEL = CfgNode()
    cfg.MODEL.DEVICE = "cuda"  # the CPU where there is no GPU
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.PIXEL_MEAN = [103.530, 116.280, 123.675]
    cfg.MODEL.PIXEL_STD = [1.0, 1.0, 1.0]
    cfg.MODEL.BACKBONE = CfgNode({"NAME": "build_resnet_backbone", "FREEZE_AT": 2})
    cfg.MODEL.RESNETS = CfgNode({"DEPTH": 50, "OUT_FEATURES": ["res4"], "STRIDE_IN_1X1": True})
    cfg.MODEL.FPN = CfgNode({"IN_FEATURES": [], "OUT_CHANNELS": 256})
    cfg.MODEL.PROPOSAL_GENERATOR = CfgNode({"MIN_SIZE": 0})
    cfg.MODEL.ANCHOR_GENERATOR = CfgNode()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64, 128, 256, 512]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.0
    cfg.MODEL.RPN = CfgNode()
    cfg.MODEL.RPN.IN_FEATURES = ["res4"]
    cfg.MODEL.RPN.BOUNDARY_THRESH = -1
    cfg.MODEL.RPN.IOU_THRESHOLDS = [0.3, 0.7]
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 256
    cfg.MODEL.RPN.POSITIVE_FRACTION = 0.5
    cfg.MODEL.RPN.BBOX_REG_LOSS_WEIGHT = 1.0
    cfg.MODEL.RPN.BBOX_REG_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
    cfg.MODEL.RPN.SMOOTH_L1_BETA = 0.0
    cfg.MODEL.RPN.LOSS_WEIGHT = 1.0
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 12000
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 6000
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 2000
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 1000
    cfg.MODEL.RPN.NMS_THRESH = 0.7
    cfg.MODEL.RPN.CONV_DIMS = [-1]
    cfg.MODEL.ROI_HEADS = CfgNode()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
    cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS = [0.5]
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 512
    cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 0.25
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.05
    cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST = 0.5
    cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = True
    cfg.MODEL.ROI_BOX_HEAD = CfgNode()
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT = 1.0
    cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
    cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA = 0.0
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 14
    cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = 0
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 0
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1024
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = False

    cfg.INPUT = CfgNode()
    cfg.INPUT.MIN_SIZE_TRAIN = (800,)
    cfg.INPUT.MAX_SIZE_TRAIN = 1333
    cfg.INPUT.MIN_SIZE_TEST = 800
    cfg.INPUT.MAX_SIZE_TEST = 1333
    cfg.INPUT.CROP = CfgNode({"SIZE": [0.9, 0.9]})

    cfg.DATASETS = CfgNode({"TRAIN": (), "TEST": ()})
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = ()
    cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN = 2000
    cfg.DATASETS.PROPOSAL_FILES_TEST = ()
    cfg.DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST = 1000
    cfg.DATALOADER = CfgNode({"NUM_WORKERS": 4})
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = True
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = True

    cfg.SOLVER = CfgNode()
    cfg.SOLVER.MAX_ITER = 40000
    cfg.SOLVER.BASE_LR = 0.001
    cfg.SOLVER.MOMENTUM = 0.9
    cfg.SOLVER.NESTEROV = False
    cfg.SOLVER.WEIGHT_DECAY = 0.0001
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.WEIGHT_DECAY_BIAS = None  # as WEIGHT_DECAY
    cfg.SOLVER.BIAS_LR_FACTOR = 1.0
    cfg.SOLVER.GAMMA = 0.1
    cfg.SOLVER.STEPS = (30000,)
    cfg.SOLVER.WARMUP_FACTOR = 1.0 / 1000
    cfg.SOLVER.WARMUP_ITERS = 1000
    cfg.SOLVER.CHECKPOINT_PERIOD = 5000
    cfg.SOLVER.IMS_PER_BATCH = 16
    cfg.SOLVER.CLIP_GRADIENTS = CfgNode({"ENABLED": False, "CLIP_VALUE": 1.0, "NORM_TYPE": 2.0})
    cfg.SOLVER.AMP = CfgNode({"ENABLED": False})

    cfg.TEST = CfgNode()
    cfg.TEST.EXPECTED_RESULTS = []
    cfg.TEST.EVAL_PERIOD = 0
    cfg.TEST.DETECTIONS_PER_IMAGE = 100
    # Fully convolutional testing at several scales: classifiers only.
    cfg.TEST.AUG = CfgNode({"FLIP": True})
    cfg.TEST.AUG.MIN_SIZES = (400, 500, 600, 700, 800, 900, 1000, 1100, 1200)
    cfg.TEST.PRECISE_BN = CfgNode({"ENABLED": False, "NUM_ITER": 200})

    cfg.OUTPUT_DIR = "./output"
    cfg.SEED = -1
    cfg.CUDNN_BENCHMARK = False

    for key, values in CHOICES.items():
        *nodes, leaf = key.split(".")
        node = cfg
        for name in nodes:
            node = node[name]
        node[leaf] = values[0]
    add_resnet_det_config(cfg)
    return cfg


def flatten(node, prefix=""):
    """Nested config -> dict of dotted key -> value."""
    flat = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
