"""The config of a tiny detector on Detectron2."""

from small_configs import DETECTOR

TINY = DETECTOR | {
    "SOLVER": DETECTOR["SOLVER"] | {"MAX_ITER": 4, "STEPS": [], "CHECKPOINT_PERIOD": 2},
    "TEST": {},
}
