"""The config keys: ``KEYS`` declares every key that the embedded engine supports.

Outside of ``RESNET_DET``, names, defaults and meanings are Detectron2's. The default config, the
checks of values and of users, the error messages and docs/config.md all derive from ``KEYS``. To
add a key, add an entry here, the code that uses it, and a test of its use.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Flag, auto
from typing import Any

from fvcore.common.config import CfgNode


class ConfigError(ValueError):
    """A config file, key or value is invalid or not supported."""


class Users(Flag):
    """The kinds of models that read a key in the embedded engine.

    Small images (CIFAR-10) are held in memory as one tensor. Large images (ImageNet) are read from
    files or shards.
    """

    DETECTOR = auto()
    SMALL_CLASSIFIER = auto()
    LARGE_CLASSIFIER = auto()

    def __str__(self) -> str:
        words = ["detectors"] if Users.DETECTOR in self else []
        if CLASSIFIER in self:
            words.append("classifiers")
        elif Users.SMALL_CLASSIFIER in self:
            words.append("classifiers of small images")
        elif Users.LARGE_CLASSIFIER in self:
            words.append("classifiers of large images")
        return " and ".join(words)


DETECTOR, SMALL, LARGE = Users.DETECTOR, Users.SMALL_CLASSIFIER, Users.LARGE_CLASSIFIER
CLASSIFIER = SMALL | LARGE
ALL = DETECTOR | CLASSIFIER


@dataclass(frozen=True)
class Key:
    """The declaration of one key.

    Attributes:
        default: the default value. Its type is the type of the key.
        users: the models that read the key. For all others it must keep its default.
        help: one line of Markdown for docs/config.md.
        choices: the values that the embedded engine supports, if it does not support all.
        least: the smallest number that it supports, if there is one.
        example: a value that shows what a list takes, if the default does not.
    """

    default: Any
    users: Users
    help: str
    choices: tuple[Any, ...] = ()
    least: float | None = None
    example: Any = None

    def __post_init__(self) -> None:
        if self.choices and self.default not in self.choices:
            raise ValueError(f"the default {self.default!r} is not one of {self.choices}")
        if self.default in ([], ()) and not self.example:
            raise ValueError(f"an empty list needs an example ({self.help})")


# fmt: off
KEYS: dict[str, Key] = {
    # ---- what Detectron2 has no keys for
    "RESNET_DET.PRETRAIN": Key("", DETECTOR,
        "Config of the classifier that writes MODEL.WEIGHTS; it is trained first if that file is "
        "absent."),
    "RESNET_DET.NEW_LAYERS": Key((), DETECTOR,
        "Layers that are always reinitialised, even if MODEL.WEIGHTS holds them, as prefixes of "
        "parameter names. Any other missing or mismatched parameter is an error.",
        example=("fc6",)),
    "RESNET_DET.USE_DIFFICULT": Key(True, DETECTOR,
        "Train on objects that VOC marks as difficult. Detectron2 does, py-faster-rcnn does not."),
    "RESNET_DET.CLASSES_BY_ORDER": Key(False, ALL,
        "Match the classes of checkpoints and datasets by their order instead of their names. Both "
        "must have equally many classes."),
    "RESNET_DET.SKIP_BAD_DATA": Key(False, ALL,
        "Skip and count broken training images, and objects with a broken annotation in training and "
        "test sets, instead of ending the run."),
    "RESNET_DET.CHECK_IMAGES": Key(True, DETECTOR | LARGE,
        "Decode all test images before training and stop if one is unusable. Images that passed "
        "the check before are not decoded again; images in tar shards are not checked."),
    "RESNET_DET.CROP_PADDING": Key(0, SMALL,
        "Zero pixels around a training image before it is cropped (section 4.2: 4 on CIFAR-10).",
        least=0),
    "RESNET_DET.PER_PIXEL_MEAN": Key(False, CLASSIFIER,
        "Subtract the mean image of the training set (section 4.2), which checkpoints carry, "
        "instead of MODEL.PIXEL_MEAN. MODEL.PIXEL_MEAN must be the mean over that image, because a "
        "detector that starts from these weights subtracts it."),
    "RESNET_DET.WARMUP_UNTIL_ERROR": Key(0.0, CLASSIFIER,
        "Warm up at WARMUP_FACTOR * BASE_LR until the running training error is below this "
        "percentage (section 4.2, 110 layers). 0: warm up for SOLVER.WARMUP_ITERS iterations.",
        least=0),
    "RESNET_DET.COLOR_PCA": Key(False, DETECTOR | LARGE,
        "Use AlexNet's colour augmentation of training images (section 3.4): shift all pixels of "
        "an image by a random multiple of each principal component of ImageNet's colours."),
    "RESNET_DET.COLOR_JITTER.BRIGHTNESS": Key((1.0, 1.0), DETECTOR | LARGE,
        "Range of the factor by which the brightness of each training image is multiplied, as in "
        "Detectron2's `RandomBrightness`, for example (0.8, 1.2). (1.0, 1.0): off."),
    "RESNET_DET.COLOR_JITTER.CONTRAST": Key((1.0, 1.0), DETECTOR | LARGE,
        "The same for the contrast, as in `RandomContrast`."),
    "RESNET_DET.COLOR_JITTER.SATURATION": Key((1.0, 1.0), DETECTOR | LARGE,
        "The same for the saturation, as in `RandomSaturation`, but for images in BGR as well. Not "
        "for grey images."),
    "RESNET_DET.TEST_CROPS": Key(1, LARGE,
        "Crops per test image. 1: the centre. 10: the centre and the four corners, and their "
        "mirror images.",
        choices=(1, 10)),
    "RESNET_DET.ENSEMBLE": Key((), ALL,
        "Further checkpoints to test together with MODEL.WEIGHTS; each carries its config. "
        "Classifiers average their softmax (Table 5); detectors follow Appendix B.",
        example=("other.pth",)),
    "RESNET_DET.EVEN_POSITIVES": Key(False, DETECTOR,
        "Draw the RPN's positive anchors evenly over the objects of an image: one of each object, "
        "then a second one, and so on. By default an object's share grows with the number of its "
        "positive anchors. Needs MODEL.PROPOSAL_GENERATOR.NAME PaperRPN."),
    "RESNET_DET.FIT_TO_DATA": Key(False, DETECTOR,
        "Choose image sizes, anchors and schedule by the boxes and the number of images of "
        "DATASETS.TRAIN, where neither the config file nor the command line sets them "
        "(docs/own_data.md)."),
    "RESNET_DET.VAL_LOSS": Key(False, DETECTOR,
        "At each evaluation in training, also log the losses on the test sets as `val_total_loss`, "
        "`val_loss_cls` and so on; with several test sets as NAME/val_total_loss."),
    "RESNET_DET.BEST.METRIC": Key("", DETECTOR,
        "Metric, such as bbox/AP, whose best evaluation is kept as `model_best.pth`. With several "
        "test sets it begins with the name of one: NAME/bbox/AP. Higher is better."),
    "RESNET_DET.BEST.PATIENCE": Key(0, DETECTOR,
        "End the run after this many evaluations in a row without a new best; 0: never.",
        least=0),
    "RESNET_DET.ACCUMULATE": Key(1, ALL,
        "Number of equal parts in which each GPU runs its images of a batch, to save memory. The "
        "gradients are those of the mean of the parts' losses; there is still one update per "
        "IMS_PER_BATCH images. Batch norms see one part at a time.", least=1),
    "RESNET_DET.CUDA_GRAPH": Key(False, SMALL,
        "On one GPU, launch the forward and backward pass as one CUDA graph, which saves the CPU's "
        "time. It has not run on a GPU yet. On a CPU, the results are the same bit for bit."),
    "RESNET_DET.FAST": Key(True, DETECTOR,
        "Fold constant batch norms, skip feature-map cells that no layer reads, and use the "
        "channels-last memory format. The results and checkpoints are the same; False is for "
        "comparison."),
    "RESNET_DET.DETERMINISTIC": Key(False, ALL,
        "Use only deterministic kernels (`torch.use_deterministic_algorithms`), so that a run on a "
        "GPU can be repeated bit for bit, more slowly ([multi_gpu.md](multi_gpu.md)). Needs "
        "CUDNN_BENCHMARK False; MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIPool cannot train so on a GPU."),
    "RESNET_DET.TEST_AMP": Key(False, ALL,
        "Test in mixed precision, too, in the type of SOLVER.AMP. By default tests run in float32, "
        "as in Detectron2."),
    "RESNET_DET.ALTERNATING": Key((80000, 40000, 80000, 40000), DETECTOR,
        "Iterations of each step of alternating training: RPN, Fast R-CNN, RPN, Fast R-CNN. The "
        "default is that of the released code for VOC 2007."),
    "RESNET_DET.GLOBAL_CONTEXT": Key(False, DETECTOR,
        "Appendix B: the head also sees the whole image, in training and in testing."),
    "RESNET_DET.BOX_REFINEMENT": Key(False, DETECTOR,
        "Appendix B: classify each region again from its regressed box, then apply NMS and box "
        "voting. Testing only."),
    "RESNET_DET.MULTI_SCALE_TEST": Key((), DETECTOR,
        "Appendix B: pool regions from images resized to these shorter sides, ascending (the "
        "paper: 200, 400, 600, 800, 1000). Testing only.", example=(400, 600, 800)),

    # ---- the run
    "VERSION": Key(2, ALL, "Version of Detectron2's config language.", choices=(2,)),
    "OUTPUT_DIR": Key("./output", ALL, "Folder of checkpoints, logs and results."),
    "SEED": Key(-1, ALL, "Seed of all random numbers. Negative: a random seed for every run."),
    "CUDNN_BENCHMARK": Key(False, ALL,
        "Let cuDNN benchmark its algorithms and choose the fastest; with TEST.AUG only in training."),
    "FLOAT32_PRECISION": Key("", ALL,
        "Precision of float32 on a GPU: all but `highest` allow TF32 in matrix products and "
        "convolutions. Empty: PyTorch's default, TF32 in convolutions only.",
        choices=("", "highest", "high", "medium")),

    # ---- the net
    "MODEL.DEVICE": Key("cuda", ALL, "`cuda`, `cuda:N` or `cpu`; without a GPU, `cpu` is used."),
    "MODEL.WEIGHTS": Key("", ALL,
        "Checkpoint to start from, or to evaluate: a file, or an address such as "
        "`detectron2://ImageNetPretrained/MSRA/R-101.pkl`, `torchvision://resnet101` or "
        "`https://...` ([weights.md](weights.md))."),
    "MODEL.META_ARCHITECTURE": Key("GeneralizedRCNN", ALL,
        "Faster R-CNN, an RPN alone, or a classifier.",
        choices=("GeneralizedRCNN", "ProposalNetwork", "Classifier")),
    "MODEL.PIXEL_MEAN": Key([103.530, 116.280, 123.675], ALL,
        "Mean of each channel, which is subtracted, in the order of INPUT.FORMAT."),
    "MODEL.PIXEL_STD": Key([1.0, 1.0, 1.0], ALL,
        "Number that each channel is divided by after the mean is subtracted."),
    "MODEL.MASK_ON": Key(False, DETECTOR, "Predict masks (Detectron2 only).", choices=(False,)),
    "MODEL.KEYPOINT_ON": Key(False, DETECTOR,
        "Predict keypoints (Detectron2 only).", choices=(False,)),
    "MODEL.LOAD_PROPOSALS": Key(False, DETECTOR,
        "Take regions from DATASETS.PROPOSAL_FILES_* instead of an RPN."),
    "MODEL.BACKBONE.NAME": Key("build_resnet_backbone", ALL,
        "A net of `resnet_det.NETS`, with the suffix `_fpn` for a pyramid; or Detectron2's "
        "`build_resnet_backbone` or `build_resnet_fpn_backbone`, with RESNETS.DEPTH."),
    "MODEL.BACKBONE.FREEZE_AT": Key(2, DETECTOR, "Number of stages to freeze, from the first.", least=0),
    "MODEL.RESNETS.DEPTH": Key(50, DETECTOR, "Depth of Detectron2's `build_resnet_*backbone`."),
    "MODEL.RESNETS.OUT_FEATURES": Key(["res4"], DETECTOR, "Stages whose output the trunk returns."),
    "MODEL.RESNETS.NORM": Key("FrozenBN", ALL,
        'Normalisation layers of the net; `""` for VGG.',
        choices=("FrozenBN", "BN", "SyncBN", "nnSyncBN", "GN", "")),
    "MODEL.RESNETS.STRIDE_IN_1X1": Key(True, ALL,
        "Put a bottleneck's stride on the first 1x1 convolution (the paper) instead of the 3x3 "
        "convolution (torchvision)."),
    "MODEL.RESNETS.RES5_DILATION": Key(1, ALL,
        "Dilation of conv5_x; 2 keeps its stride at 16.", choices=(1, 2)),
    "MODEL.FPN.IN_FEATURES": Key([], DETECTOR,
        "Stages that the pyramid is built on.", example=["res2"]),
    "MODEL.FPN.OUT_CHANNELS": Key(256, DETECTOR, "Channels of every level of the pyramid."),
    "MODEL.FPN.NORM": Key("", DETECTOR, "Normalisation of the pyramid.", choices=("",)),
    "MODEL.FPN.FUSE_TYPE": Key("sum", DETECTOR,
        "How the pyramid joins top-down and lateral features.", choices=("sum",)),

    # ---- proposals
    "MODEL.PROPOSAL_GENERATOR.NAME": Key("RPN", DETECTOR,
        "An RPN, or files of proposals (MODEL.LOAD_PROPOSALS). `PaperRPN` is the same RPN, with "
        "RESNET_DET.EVEN_POSITIVES.",
        choices=("RPN", "PaperRPN", "PrecomputedProposals")),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": Key(0, DETECTOR,
        "Width and height that a proposal must exceed, in pixels of the resized image."),
    "MODEL.ANCHOR_GENERATOR.NAME": Key("DefaultAnchorGenerator", DETECTOR,
        "Detectron2's anchors, or torchvision's, which are rounded to whole pixels.",
        choices=("DefaultAnchorGenerator", "TorchvisionAnchorGenerator")),
    "MODEL.ANCHOR_GENERATOR.SIZES": Key([[32, 64, 128, 256, 512]], DETECTOR,
        "Square roots of the anchors' areas in pixels, one list per level or one for all.",
        example=[[32.0, 64.0, 128.0]]),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": Key([[0.5, 1.0, 2.0]], DETECTOR,
        "Height over width of the anchors, one list per level or one for all."),
    "MODEL.ANCHOR_GENERATOR.OFFSET": Key(0.0, DETECTOR,
        "Offset of the first anchor's centre, in strides."),
    "MODEL.RPN.HEAD_NAME": Key("StandardRPNHead", DETECTOR,
        "Kind of head.", choices=("StandardRPNHead",)),
    "MODEL.RPN.IN_FEATURES": Key(["res4"], DETECTOR, "Feature maps that the RPN runs on."),
    "MODEL.RPN.CONV_DIMS": Key([-1], DETECTOR,
        "Output channels of the RPN's 3x3 convolution; -1: as many as its input has."),
    "MODEL.RPN.BOUNDARY_THRESH": Key(-1, DETECTOR,
        "Training ignores anchors that extend beyond the image by more than this many pixels; -1 "
        "keeps all."),
    "MODEL.RPN.IOU_THRESHOLDS": Key([0.3, 0.7], DETECTOR,
        "Anchors are background below the first IoU and foreground from the second on."),
    "MODEL.RPN.IOU_LABELS": Key([0, -1, 1], DETECTOR,
        "Labels of the ranges that IOU_THRESHOLDS separate; -1: ignored in the loss.",
        choices=([0, -1, 1],)),
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": Key(256, DETECTOR,
        "Anchors per image that are sampled for the loss."),
    "MODEL.RPN.POSITIVE_FRACTION": Key(0.5, DETECTOR,
        "Largest fraction of foreground anchors in the loss."),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": Key("smooth_l1", DETECTOR,
        "Loss of the box regression.", choices=("smooth_l1",)),
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": Key(1.0, DETECTOR,
        "Weight of the box regression loss, multiplied by LOSS_WEIGHT."),
    "MODEL.RPN.BBOX_REG_WEIGHTS": Key((1.0, 1.0, 1.0, 1.0), DETECTOR,
        "Scale of the regression targets (dx, dy, dw, dh)."),
    "MODEL.RPN.SMOOTH_L1_BETA": Key(0.0, DETECTOR,
        "Error at which smooth L1 changes from L2 to L1; 0: L1 everywhere."),
    "MODEL.RPN.LOSS_WEIGHT": Key(1.0, DETECTOR, "Weight of both losses of the RPN."),
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": Key(12000, DETECTOR,
        "Proposals per level before NMS, in training."),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": Key(6000, DETECTOR,
        "Proposals per level before NMS, in testing."),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": Key(2000, DETECTOR,
        "Proposals per image after NMS, in training."),
    "MODEL.RPN.POST_NMS_TOPK_TEST": Key(1000, DETECTOR,
        "Proposals per image after NMS, in testing."),
    "MODEL.RPN.NMS_THRESH": Key(0.7, DETECTOR, "IoU threshold of the NMS of proposals."),

    # ---- RoI heads
    "MODEL.ROI_HEADS.NAME": Key("Res5ROIHeads", DETECTOR,
        "The head: the last stage of the net (`Res5ROIHeads`, `PaperROIHeads`) or fully connected "
        "layers (`StandardROIHeads`), run per region.",
        choices=("Res5ROIHeads", "PaperROIHeads", "StandardROIHeads")),
    "MODEL.ROI_HEADS.NUM_CLASSES": Key(80, DETECTOR, "Number of classes, without the background."),
    "MODEL.ROI_HEADS.IN_FEATURES": Key(["res4"], DETECTOR,
        "Feature maps that regions are pooled from."),
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": Key([0.5], DETECTOR,
        "IoUs that separate background from foreground regions (see IOU_LABELS)."),
    "MODEL.ROI_HEADS.IOU_LABELS": Key([0, 1], DETECTOR,
        "Labels of the ranges that IOU_THRESHOLDS separate: 0 background, 1 foreground, -1 ignored "
        "in the loss.", choices=([0, 1], [-1, 0, 1], [0, -1, 1])),
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": Key(512, DETECTOR,
        "Regions per image that are sampled for the loss."),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": Key(0.25, DETECTOR,
        "Largest fraction of foreground regions in the loss."),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": Key(0.05, DETECTOR, "Score threshold of detections."),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": Key(0.5, DETECTOR,
        "IoU threshold of the NMS of detections."),
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": Key(True, DETECTOR,
        "Add the ground-truth boxes to the proposals in training."),
    "MODEL.ROI_BOX_HEAD.NAME": Key("", DETECTOR,
        "`FastRCNNConvFCHead` for StandardROIHeads.", choices=("", "FastRCNNConvFCHead")),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": Key("smooth_l1", DETECTOR,
        "Loss of the box regression.", choices=("smooth_l1",)),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": Key(1.0, DETECTOR,
        "Weight of the box regression loss."),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": Key((10.0, 10.0, 5.0, 5.0), DETECTOR,
        "Scale of the regression targets (dx, dy, dw, dh)."),
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": Key(0.0, DETECTOR,
        "Error at which smooth L1 changes from L2 to L1; 0: L1 everywhere."),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": Key("ROIAlignV2", DETECTOR,
        "How regions are pooled.", choices=("ROIAlignV2", "ROIAlign", "ROIPool")),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": Key(14, DETECTOR, "Side of a pooled region."),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": Key(0, DETECTOR,
        "RoIAlign's samples per bin and axis; 0: adapted to the size of the region."),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": Key(0, DETECTOR, "Convolutions of the head.", choices=(0,)),
    "MODEL.ROI_BOX_HEAD.NUM_FC": Key(0, DETECTOR, "Fully connected layers of StandardROIHeads."),
    "MODEL.ROI_BOX_HEAD.FC_DIM": Key(1024, DETECTOR, "Width of the fully connected layers."),
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": Key(False, DETECTOR,
        "Regress one box per region instead of one per class."),
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": Key(False, DETECTOR,
        "Train other heads on predicted boxes (Detectron2 only).", choices=(False,)),

    # ---- images and data
    "INPUT.FORMAT": Key("BGR", ALL, "Order of the channels; L is grey, one channel.",
        choices=("BGR", "RGB", "L")),
    "INPUT.MIN_SIZE_TRAIN": Key((800,), DETECTOR | LARGE,
        "Shorter side of training images, in pixels."),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": Key("choice", DETECTOR | LARGE,
        "Draw one of MIN_SIZE_TRAIN (`choice`), or any size between its two (`range`).",
        choices=("choice", "range")),
    "INPUT.MAX_SIZE_TRAIN": Key(1333, DETECTOR,
        "Upper limit of the longer side of training images, in pixels."),
    "INPUT.MIN_SIZE_TEST": Key(800, DETECTOR | LARGE, "Shorter side of test images, in pixels."),
    "INPUT.MAX_SIZE_TEST": Key(1333, DETECTOR,
        "Upper limit of the longer side of test images, in pixels."),
    "INPUT.RANDOM_FLIP": Key("horizontal", ALL,
        "Mirror each training image with probability 1/2. `vertical` is only for detectors.",
        choices=("horizontal", "vertical", "none")),
    "INPUT.CROP.ENABLED": Key(False, ALL,
        "Crop training images at random: a detector's before they are resized."),
    "INPUT.CROP.TYPE": Key("relative_range", ALL,
        "How SIZE gives the height and width of a crop. `absolute`: in pixels. `absolute_range`: in "
        "pixels, drawn from the range SIZE. `relative`: as parts of the image's. `relative_range`: "
        "as parts, drawn between SIZE and 1. Classifiers need `absolute`.",
        choices=("relative_range", "relative", "absolute_range", "absolute")),
    "INPUT.CROP.SIZE": Key([0.9, 0.9], ALL,
        "Height and width of a crop, or the ends of a range (see TYPE). A classifier's crops are "
        "square."),
    "DATASETS.TRAIN": Key((), ALL,
        "Datasets to train on, by name or path.", example=("voc_2007_trainval",)),
    "DATASETS.TEST": Key((), ALL,
        "Datasets to evaluate on, by name or path.", example=("voc_2007_test",)),
    "DATASETS.PROPOSAL_FILES_TRAIN": Key((), DETECTOR,
        "One proposal file per dataset of DATASETS.TRAIN.", example=("proposals.pkl",)),
    "DATASETS.PROPOSAL_FILES_TEST": Key((), DETECTOR,
        "One proposal file per dataset of DATASETS.TEST.", example=("proposals.pkl",)),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": Key(2000, DETECTOR,
        "Number of precomputed proposals per training image."),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": Key(1000, DETECTOR,
        "Number of precomputed proposals per test image."),
    "DATALOADER.NUM_WORKERS": Key(4, DETECTOR | LARGE,
        "Number of processes per GPU that load images.", least=0),
    "DATALOADER.ASPECT_RATIO_GROUPING": Key(True, DETECTOR,
        "Batch portrait and landscape images separately."),
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": Key(True, DETECTOR,
        "Skip training images without objects."),
    "DATALOADER.SAMPLER_TRAIN": Key("TrainingSampler", DETECTOR,
        "Order of the training images: shuffled.", choices=("TrainingSampler",)),

    # ---- training
    "SOLVER.IMS_PER_BATCH": Key(16, ALL, "Images per iteration, over all GPUs.", least=1),
    "SOLVER.REFERENCE_WORLD_SIZE": Key(0, ALL,
        "Number of processes (GPUs) that the batch and the schedule are written for. With N "
        "processes, IMS_PER_BATCH and BASE_LR are multiplied by N / REFERENCE_WORLD_SIZE, and "
        "numbers of iterations divided by it. 0: not scaled.", least=0),
    "SOLVER.MAX_ITER": Key(40000, ALL, "Number of iterations.", least=1),
    "SOLVER.BASE_LR": Key(0.001, ALL, "Learning rate after the warm-up.", least=0),
    "SOLVER.BASE_LR_END": Key(0.0, ALL,
        "Learning rate that `WarmupCosineLR` reaches at MAX_ITER.", least=0),
    "SOLVER.STEPS": Key((30000,), ALL,
        "Iterations at which `WarmupMultiStepLR` multiplies the learning rate by GAMMA."),
    "SOLVER.GAMMA": Key(0.1, ALL, "Factor of the learning rate at each of STEPS."),
    "SOLVER.LR_SCHEDULER_NAME": Key("WarmupMultiStepLR", ALL,
        "How the learning rate falls: by GAMMA at each of STEPS, or along half a cosine from "
        "BASE_LR to BASE_LR_END.", choices=("WarmupMultiStepLR", "WarmupCosineLR")),
    "SOLVER.WARMUP_METHOD": Key("linear", ALL,
        "How the learning rate rises.", choices=("linear", "constant")),
    "SOLVER.WARMUP_FACTOR": Key(0.001, ALL, "Factor of BASE_LR at the first iteration."),
    "SOLVER.WARMUP_ITERS": Key(1000, ALL, "Iterations of the warm-up."),
    "SOLVER.MOMENTUM": Key(0.9, ALL, "Momentum of SGD."),
    "SOLVER.NESTEROV": Key(False, ALL, "Use Nesterov momentum."),
    "SOLVER.WEIGHT_DECAY": Key(0.0001, ALL, "Weight decay."),
    "SOLVER.WEIGHT_DECAY_NORM": Key(0.0, ALL, "Weight decay of normalisation layers."),
    "SOLVER.WEIGHT_DECAY_BIAS": Key(None, ALL, "Weight decay of biases; None: WEIGHT_DECAY."),
    "SOLVER.BIAS_LR_FACTOR": Key(1.0, ALL, "Factor of the learning rate of biases."),
    "SOLVER.CLIP_GRADIENTS.ENABLED": Key(False, ALL, "Clip gradients."),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": Key("value", ALL,
        "Clip each gradient value, or the norm of each parameter's gradient.",
        choices=("value", "norm")),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": Key(1.0, ALL, "Maximum absolute value, or maximum norm."),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": Key(2.0, ALL, "p of the p-norm."),
    "SOLVER.AMP.ENABLED": Key(False, ALL, "Train in mixed precision; see RESNET_DET.TEST_AMP for tests."),
    "SOLVER.CHECKPOINT_PERIOD": Key(5000, ALL, "Iterations between checkpoints.", least=1),

    # ---- testing
    "TEST.EVAL_PERIOD": Key(0, ALL, "Iterations between evaluations; 0: only at the end.", least=0),
    "TEST.EXPECTED_RESULTS": Key([], ALL,
        "[[task, metric, value, tolerance], ...]: the run fails if a result differs by more.",
        example=[["bbox", "AP", 38.5, 0.2]]),
    "TEST.DETECTIONS_PER_IMAGE": Key(100, DETECTOR, "Max detections per image."),
    "TEST.PRECISE_BN.ENABLED": Key(False, CLASSIFIER,
        "Recompute the statistics of batch norms after training (precise BN)."),
    "TEST.PRECISE_BN.NUM_ITER": Key(200, CLASSIFIER,
        "Number of batches that precise BN averages over.", least=1),
    "TEST.AUG.ENABLED": Key(False, DETECTOR | LARGE,
        "Test-time augmentation. Classifiers test fully convolutionally at several scales (Table "
        "4). Detectors are evaluated with it after the evaluation without it, at the end of "
        "training and with `--eval-only`; its metrics are named `bbox_TTA`."),
    "TEST.AUG.MIN_SIZES": Key((400, 500, 600, 700, 800, 900, 1000, 1100, 1200), DETECTOR | LARGE,
        "Shorter sides of the copies of an image, in pixels."),
    "TEST.AUG.MAX_SIZE": Key(4000, DETECTOR,
        "Upper limit of the longer side of the copies, in pixels.", least=1),
    "TEST.AUG.FLIP": Key(True, DETECTOR | LARGE, "Also test the mirrored image at each scale."),
}
# fmt: on

# Examples for lists that only Detectron2 supports and whose defaults do not show what they take.
DETECTRON2_EXAMPLES = {
    "MODEL.ANCHOR_GENERATOR.ANGLES": [[-90.0, 0.0, 90.0]],
    "TEST.KEYPOINT_OKS_SIGMAS": [0.026, 0.025],
}
# MASK_ON and KEYPOINT_ON switch these heads off: then their keys have no effect, as in Detectron2.
SWITCHED_OFF = ("MODEL.ROI_MASK_HEAD.", "MODEL.ROI_KEYPOINT_HEAD.")


def add_resnet_det_config(cfg: CfgNode) -> None:
    """Add the node ``RESNET_DET`` with its defaults to a config, Detectron2's or ours."""
    _add(cfg, "RESNET_DET.")


def get_cfg() -> CfgNode:
    """Return a new config with the defaults. Merging an unknown key into it is an error."""
    cfg = CfgNode()
    _add(cfg)
    return cfg


def _add(cfg: CfgNode, prefix: str = "") -> None:
    for path, key in KEYS.items():
        if not path.startswith(prefix):
            continue
        *nodes, leaf = path.split(".")
        node = cfg
        for name in nodes:
            if name not in node:
                node[name] = type(cfg)()  # yacs merges only nodes of the same class
            node = node[name]
        node[leaf] = copy.deepcopy(key.default)


def flatten(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested config to a dict of dotted key -> value."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def with_values(cfg: CfgNode, values: Mapping[str, Any]) -> CfgNode:
    """Return a frozen copy of a config, Detectron2's or ours, with new values of dotted keys."""
    result = cfg.clone()
    for key, value in values.items():
        *nodes, leaf = key.split(".")
        node = result
        for name in nodes:
            node = node[name]
        if leaf not in node:
            raise KeyError(key)
        node[leaf] = value
    result.freeze()
    return result
