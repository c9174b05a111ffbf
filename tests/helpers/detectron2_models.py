"""Small models of Detectron2, their inputs and losses."""

import torch
from detectron2.config import get_cfg
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage


def small_cfg(backbone, **keys):
    """Detectron2's own config, of a detector of 3 classes that is quick on the CPU."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = backbone
    cfg.MODEL.ROI_HEADS.NAME = "PaperROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 100
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 10
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.TEST.DETECTIONS_PER_IMAGE = 10
    cut = "res3" if backbone.startswith("cifar") else "res4"
    if "vgg" in backbone:
        cut = "conv5"
        cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.RESNETS.OUT_FEATURES = [cut]
    cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = [cut]
    cfg.merge_from_list([x for pair in keys.items() for x in (pair[0].replace("__", "."), pair[1])])
    return cfg


def picture(masks=False, **more):
    """An image of 64 x 96 with two objects."""
    objects = Instances((64, 96))
    objects.gt_boxes = Boxes(torch.tensor([[5.0, 8.0, 50.0, 60.0], [30.0, 4.0, 90.0, 40.0]]))
    objects.gt_classes = torch.tensor([0, 2])
    if masks:
        mask = torch.zeros(2, 64, 96, dtype=torch.bool)
        mask[0, 8:60, 5:50] = mask[1, 4:40, 30:90] = True
        objects.gt_masks = BitMasks(mask)
    pixels = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255
    return {"image": pixels, "height": 64, "width": 96, "instances": objects, **more}


def losses(model, sample):
    with EventStorage():
        return model.train()([sample])
