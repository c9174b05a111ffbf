"""The declarations of the config keys, and the documentation and checks derived from them."""

import re
from pathlib import Path

import pytest

from resnet_det.config.checks import check_users
from resnet_det.config.defaults import (
    ALL,
    CLASSIFIER,
    DETECTOR,
    KEYS,
    LARGE,
    SMALL,
    ConfigError,
    Key,
    flatten,
    get_cfg,
)
from resnet_det.config.docs import markdown
from resnet_det.hints import did_you_mean

ROOT = Path(__file__).parents[2]


def test_docs_are_generated_from_the_declarations():
    assert (ROOT / "docs/config.md").read_text() == markdown(), (
        "run python -m resnet_det.config.docs > docs/config.md"
    )


def test_every_key_has_a_row_that_fits_the_table():
    rows = {row.split("`")[1]: row for row in markdown().splitlines() if row.startswith("| `")}
    assert rows.keys() == flatten(get_cfg()).keys()
    for name, row in rows.items():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert len(cells) == 5 and cells[3] and cells[4].endswith("."), row
        assert cells[1] == f"`{flatten(get_cfg())[name]!r}`"


def test_every_key_that_can_be_set_is_read_outside_of_the_config():
    """The other keys accept only one value."""
    package = ROOT / "resnet_det"
    files = [path for path in package.rglob("*.py") if path.parent.name != "config"]
    words = set(re.findall(r"[A-Z][A-Z0-9_]+[0-9A-Za-z_]*", "\n".join(map(Path.read_text, files))))
    # Read by a name that is put together from the split.
    words |= {"PRECOMPUTED_PROPOSAL_TOPK_TRAIN", "PRECOMPUTED_PROPOSAL_TOPK_TEST",
              "PROPOSAL_FILES_TRAIN"}  # fmt: skip
    unread = [k for k, key in KEYS.items() if k.split(".")[-1] not in words]
    assert [k for k in unread if len(KEYS[k].choices) != 1] == []


def test_a_declaration_that_lacks_something_is_refused():
    with pytest.raises(TypeError):
        Key(1, ALL)  # no help
    with pytest.raises(ValueError, match="'c' is not one of"):
        Key("c", ALL, "Help.", choices=("a", "b"))
    with pytest.raises(ValueError, match="needs an example"):
        Key((), ALL, "Help.")


def test_configs_do_not_share_lists():
    get_cfg().MODEL.PIXEL_MEAN[0] = 0.0
    assert get_cfg().MODEL.PIXEL_MEAN[0] == 103.53


@pytest.mark.parametrize("user", [DETECTOR, SMALL, LARGE])
def test_a_key_of_other_users_keeps_its_default(user):
    """Sets each key to another value, alone and with its node enabled."""
    check_users(get_cfg(), user)
    refused = set()
    for name in KEYS:
        cfg = get_cfg()
        node = cfg
        for part in name.split(".")[:-1]:
            node = node[part]
        if "ENABLED" in node:
            node["ENABLED"] = True
        node[name.split(".")[-1]] = True if name.endswith(".ENABLED") else ["another"]
        try:
            check_users(cfg, user)
        except ConfigError as error:
            assert str(error).startswith(name.rpartition(".")[0])
            refused.add(name)
    assert refused == {name for name, key in KEYS.items() if user not in key.users}


@pytest.mark.parametrize("key, value, user, words", [
    ("RESNET_DET.CROP_PADDING", 4, LARGE, "only for classifiers of small images"),
    ("RESNET_DET.TEST_CROPS", 10, SMALL, "only for classifiers of large images"),
    ("RESNET_DET.TEST_CROPS", 10, DETECTOR, "only for classifiers of large images"),
    ("RESNET_DET.COLOR_PCA", True, SMALL, "only for detectors and classifiers of large images"),
    ("TEST.PRECISE_BN.ENABLED", True, DETECTOR, "only for classifiers"),
    ("MODEL.RPN.NMS_THRESH", 0.5, SMALL, "only for detectors"),
    ("DATALOADER.NUM_WORKERS", 1, SMALL, "only for detectors and classifiers of large images"),
])  # fmt: skip
def test_the_users_are_named(key, value, user, words):
    cfg = get_cfg()
    cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError) as error:
        check_users(cfg, user)
    assert str(error.value) == f"{key}: {value}: this key is {words}"


def test_keys_of_a_node_that_is_switched_off_have_no_effect():
    cfg = get_cfg()
    cfg.TEST.PRECISE_BN.NUM_ITER = 5
    check_users(cfg, DETECTOR)
    cfg.TEST.PRECISE_BN.ENABLED = True
    with pytest.raises(ConfigError, match="TEST.PRECISE_BN"):
        check_users(cfg, DETECTOR)


def test_classifiers_are_those_of_small_and_of_large_images():
    assert CLASSIFIER == SMALL | LARGE and DETECTOR | CLASSIFIER == ALL


def test_hints():
    known = ("voc_2007_trainval", "voc_2007_test", "coco_2017_val")
    assert did_you_mean("voc_2007_tset", known).startswith("; did you mean voc_2007_test")
    assert did_you_mean("SOLVER.MAX_ITR", KEYS) == "; did you mean SOLVER.MAX_ITER?"
    assert did_you_mean("SOLVER.LR", KEYS) == "; did you mean SOLVER.BASE_LR?"
    assert did_you_mean("INPUT.MIN_SIZE", KEYS) == (
        "; did you mean INPUT.MIN_SIZE_TEST or INPUT.MIN_SIZE_TRAIN?"
    )
    assert did_you_mean("zzz", known) == ""
    assert did_you_mean("zzz", known, list_all=True) == f"; use one of {', '.join(known)}"
