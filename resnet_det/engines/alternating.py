"""The 4-step alternating training of Faster R-CNN, expressed in Detectron2's config keys.

1. Train an RPN, initialised from the classifier (``META_ARCHITECTURE: ProposalNetwork``), and write
   its proposals to a file.
2. Train Fast R-CNN, initialised from the classifier, on these proposals (``LOAD_PROPOSALS``,
   ``PrecomputedProposals``).
3. Train an RPN, initialised from step 2, with a frozen trunk (``FREEZE_AT``), and write its
   proposals.
4. Train Fast R-CNN, initialised from step 2, on these proposals, with a frozen trunk.

Steps 3 and 4 share the trunk of step 2, so the RPN of step 3 and the RoI heads of step 4 form one
detector: ``model_final.pth`` in ``OUTPUT_DIR``, as in joint training.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from .. import training
from ..config.defaults import ConfigError, with_values
from ..config.loading import embedded_part, parse_config
from ..detector.build import net_name
from ..files import safe_name
from ..nets import meta_net
from ..training import alone_in, distributed
from ..weights.loading import read
from . import Engine, embedded
from .checks import check_output, check_trainable
from .provenance import checkpoint_facts
from .scaling import for_processes

logger = logging.getLogger(__name__)

STEPS = ("step1_rpn", "step2_fast_rcnn", "step3_rpn", "step4_fast_rcnn")


def step_config(cfg: CfgNode, index: int) -> CfgNode:
    """Derive the config of step ``index`` (from 0) from that of joint training.

    An RPN step has half as many images per batch as a Fast R-CNN step (1 and 2 in the released
    code, 8 and 16 in the paper on COCO). The learning rate drops after three quarters of the step's
    iterations (``RESNET_DET.ALTERNATING``). Steps are not evaluated.
    """
    output, rpn = Path(cfg.OUTPUT_DIR), index % 2 == 0
    iterations = cfg.RESNET_DET.ALTERNATING[index]
    drop = iterations * 3 // 4
    images, world = cfg.SOLVER.IMS_PER_BATCH, distributed.launch_info().world
    step: dict[str, Any] = {
        "OUTPUT_DIR": str(output / STEPS[index]),
        "DATASETS.TEST": (),
        "TEST.EXPECTED_RESULTS": [],
        "TEST.AUG.ENABLED": False,
        "RESNET_DET.PRETRAIN": "",
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": (drop,) if drop else (),
        "SOLVER.IMS_PER_BATCH": max(images // 2 // world, 1) * world if rpn else images,
    }
    if index != 1:  # steps 3 and 4 keep all of step 2's layers; an RPN has none of these layers
        step["RESNET_DET.NEW_LAYERS"] = ()
    if index >= 2:
        step["MODEL.WEIGHTS"] = str(output / STEPS[1] / "model_final.pth")
        step["MODEL.BACKBONE.FREEZE_AT"] = len(meta_net(net_name(cfg)[0]).trunk_names)
    if rpn:
        step["MODEL.META_ARCHITECTURE"] = "ProposalNetwork"
    else:
        files = tuple(str(proposal_file(cfg, index - 1, name)) for name in cfg.DATASETS.TRAIN)
        step |= {
            "MODEL.LOAD_PROPOSALS": True,
            "MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals",
            "RESNET_DET.EVEN_POSITIVES": False,
            "DATASETS.PROPOSAL_FILES_TRAIN": files,
            "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN,
        }
    return with_values(cfg, step)


def step_of(cfg: CfgNode, path: str | Path) -> CfgNode:
    """The config of the step that wrote a file ``not_finite_<iteration>.pth``.

    Args:
        cfg: the config of joint training.

    Raises:
        ConfigError: the file is not in a step's folder.
    """
    name = Path(path).resolve().parent.name
    if name not in STEPS:
        raise ConfigError(f"--replay {path}: give a file in one of the folders {', '.join(STEPS)}")
    return step_config(for_processes(cfg, resume=True), STEPS.index(name))


def proposal_file(cfg: CfgNode, index: int, name: str) -> Path:
    """Path of the proposals that the RPN of step ``index`` makes for the dataset ``name``."""
    return Path(cfg.OUTPUT_DIR) / STEPS[index] / f"{safe_name(name)}_proposals.pkl"


def _is_done(cfg):
    """Whether the last checkpoint of a run is its final one."""
    try:
        return (Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text().strip() == "model_final.pth"
    except FileNotFoundError:
        return False


def _propose(cfg, step):
    """Write the proposals of a finished RPN step for all training images, as many as training uses.

    The embedded engine computes them, whichever engine trained the RPN: from the same weights, both
    compute the same proposals.
    """
    rpn = cfg.MODEL.RPN
    step = with_values(
        step,
        {
            "MODEL.WEIGHTS": f"{step.OUTPUT_DIR}/model_final.pth",
            "MODEL.RPN.PRE_NMS_TOPK_TEST": rpn.PRE_NMS_TOPK_TRAIN,
            "MODEL.RPN.POST_NMS_TOPK_TEST": rpn.POST_NMS_TOPK_TRAIN,
        },
    )
    index = STEPS.index(Path(step.OUTPUT_DIR).name)
    for name in cfg.DATASETS.TRAIN:
        path = proposal_file(cfg, index, name)
        if not distributed.all_gather_objects(path.exists())[0]:
            device = ["MODEL.DEVICE", step.MODEL.DEVICE]
            own = parse_config(embedded_part(step), step.OUTPUT_DIR, device)
            embedded.propose(own, name, str(path))
            logger.info("wrote %s", path)


def _join(cfg):
    """Combine the nets of steps 3 and 4 to one detector and save it in ``OUTPUT_DIR``.

    Raises:
        ConfigError: their trunks differ, so the steps do not belong to one run.
    """
    (rpn, _), (heads, facts) = (
        read(Path(cfg.OUTPUT_DIR) / STEPS[i] / "model_final.pth") for i in (2, 3)
    )
    for key, value in rpn.items():
        if key.startswith("backbone.") and not torch.equal(value, heads[key]):
            raise ConfigError(
                f"OUTPUT_DIR: {cfg.OUTPUT_DIR}: {key} of the shared trunk differs in steps 3 and "
                "4: remove the folder and train again"
            )
    whole = heads | {k: v for k, v in rpn.items() if k.startswith("proposal_generator.")}
    training.Checkpointer(cfg.OUTPUT_DIR).save(
        "model_final",
        model=whole,
        iteration=sum(cfg.RESNET_DET.ALTERNATING),
        meta=checkpoint_facts(cfg, facts["classes"], facts["seed"]),
    )


def check(engine: Engine, cfg: CfgNode, resume: bool = False) -> None:
    """Raise the errors that :func:`train` raises before it needs weights."""
    cfg = for_processes(cfg, resume)
    _steps(engine, cfg, resume)
    engine.check(cfg, resume)


def _steps(engine, cfg, resume):
    """The checked configs of the four steps."""
    if net_name(cfg)[1]:
        raise ConfigError(
            "MODEL.BACKBONE.NAME: alternating training does not support feature pyramids"
        )
    own = cfg.RESNET_DET
    for key, value in {"VAL_LOSS": own.VAL_LOSS, "BEST.METRIC": own.BEST.METRIC}.items():
        if value:
            raise ConfigError(
                f"RESNET_DET.{key}: {value}: the steps of alternating training are not evaluated: "
                f"set it to {type(value)()!r}"
            )
    iterations = cfg.RESNET_DET.ALTERNATING
    if len(iterations) != 4 or min(iterations) < 1:
        raise ConfigError(
            f"RESNET_DET.ALTERNATING: {iterations}: give four numbers of iterations of at least 1"
        )
    steps = [step_config(cfg, index) for index in range(4)]
    for step in (*steps, cfg):
        check_trainable(step, resume)
        engine.check_schedule(step)
    return steps


def train(engine: Engine, cfg: CfgNode, resume: bool = False) -> dict[str, float]:
    """Run the steps that are not done yet, join them, and evaluate the detector.

    Args:
        engine: from :func:`resnet_det.engines.pick`.
        cfg: the config of joint training, from that engine's ``load_config``.
        resume: continue in an ``OUTPUT_DIR`` that already holds steps, even within a step.

    Returns:
        dict of the metrics in the main process.

    Raises:
        ConfigError: the config has a pyramid, or ``RESNET_DET.ALTERNATING`` does not have four
            numbers. Also see the engine's ``train``.
        FolderInUse: another process runs in ``OUTPUT_DIR``.
    """
    cfg = for_processes(cfg, resume)
    distributed.init(cfg.MODEL.DEVICE)
    steps = _steps(engine, cfg, resume)
    engine.check(cfg, resume)  # includes the test sets, which the steps lack
    with alone_in(cfg.OUTPUT_DIR):
        for step in (*steps, cfg):
            check_output(step, resume)
        for index, step in enumerate(steps):
            if not distributed.all_gather_objects(_is_done(step))[0]:
                logger.info("%s: %d iterations", STEPS[index], step.SOLVER.MAX_ITER)
                engine.train(step, resume=True)
            if index % 2 == 0:
                _propose(cfg, step)
        if distributed.is_main() and not _is_done(cfg):
            _join(cfg)
        distributed.barrier()
    if not cfg.DATASETS.TEST:
        return {}
    weights = {"MODEL.WEIGHTS": f"{cfg.OUTPUT_DIR}/model_final.pth"}
    return engine.evaluate(with_values(cfg, weights))
