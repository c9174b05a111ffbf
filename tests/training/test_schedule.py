import copy

import pytest
import torch
from torch import nn

from resnet_det.config.defaults import KEYS
from resnet_det.training.schedule import (
    SCHEDULES,
    build_optimizer,
    build_schedule,
    clip_gradients,
)


def rates(count, lr=1.0, **kwargs):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = build_schedule(optimizer, **kwargs)
    result = []
    for _ in range(count):
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return result


def test_cifar_steps_at_the_papers_iterations():
    lr = rates(64_000, lr=0.1, steps=[32_000, 48_000], gamma=0.1, max_iter=64_000)
    wanted = {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}
    assert {i: lr[i] for i in wanted} == pytest.approx(wanted, rel=1e-12)


def test_linear_warmup_climbs_from_the_factor_to_the_full_rate():
    lr = rates(12, lr=2.0, steps=[10], gamma=0.1, max_iter=12, warmup_iters=4, warmup_factor=0.5)
    assert lr == pytest.approx([1, 1.25, 1.5, 1.75, 2, 2, 2, 2, 2, 2, 0.2, 0.2], rel=1e-12)


def test_constant_warmup():
    lr = rates(
        5,
        steps=[],
        gamma=0.1,
        max_iter=5,
        warmup_iters=3,
        warmup_factor=0.1,
        warmup_method="constant",
    )
    assert lr == pytest.approx([0.1, 0.1, 0.1, 1, 1], rel=1e-12)


def test_cosine_falls_to_base_lr_end():
    """A quarter of the way 0.146 of the difference is gone, (1 - cos 45 deg) / 2; then half."""
    options = {"name": "WarmupCosineLR", "steps": [3, 2], "gamma": 0.1, "max_iter": 8}
    lr = rates(9, lr=2.0, base_lr_end=1.0, **options)
    assert [lr[i] for i in (0, 2, 4, 8)] == pytest.approx([2, 1.853553391, 1.5, 1])
    # The warm-up rises to the cosine's value where it ends.
    lr = rates(9, lr=2.0, warmup_iters=4, warmup_factor=0.5, **options)
    assert lr[:5] == pytest.approx([1, 1, 1, 1, 1])


def by_rule(errors, until=None):
    """Learning rates of the paper's 110 layers under the given training errors, and the
    schedule."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    options = {"steps": [60], "gamma": 0.1, "max_iter": 80}
    schedule = build_schedule(optimizer, **options, warmup_factor=0.1, until_error=80.0)
    result = []
    for i, error in enumerate(errors):
        if i == until:  # a new process goes on from the checkpoint
            states = optimizer.state_dict(), schedule.state_dict()
            optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
            schedule = build_schedule(optimizer, **options, warmup_factor=0.1, until_error=80.0)
            optimizer.load_state_dict(states[0])
            schedule.load_state_dict(states[1])
        result.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.observe({"top1_error": error})
        schedule.step()
    return result


def test_warmup_until_the_training_error_is_below_80():
    """0.01 while the mean over 20 batches is not below 80 %, then the schedule by iteration."""
    # 30 batches at 90 %, then 70 %: after 11 of these the mean of the last 20 is 79 %. A later rise
    # changes nothing.
    errors = [90.0] * 30 + [70.0] * 15 + [95.0] * 35
    lr = by_rule(errors)
    assert lr == pytest.approx([0.01] * 41 + [0.1] * 19 + [0.01] * 20, rel=1e-12)
    for at in (5, 35, 41, 50):  # resumed inside and behind it
        assert by_rule(errors, until=at) == lr
    # Lucky batches end nothing.
    assert by_rule([0.0] * 19) == pytest.approx([0.01] * 19)
    assert by_rule([0.0] * 2 + [90.0] * 38) == pytest.approx([0.01] * 40)
    # As long as the rule has not fired, steps do not lower the rate of 0.01 further.
    assert by_rule([90.0] * 80) == pytest.approx([0.01] * 80)


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="WARMUP_UNTIL_ERROR.*SOLVER.WARMUP_ITERS"):
        rates(1, steps=[], gamma=0.1, max_iter=5, warmup_iters=3, until_error=80.0)
    with pytest.raises(ValueError, match="cosine"):
        rates(1, steps=[], gamma=0.1, max_iter=5, warmup_method="cosine")
    with pytest.raises(ValueError, match=r"\[4, 3\]"):
        rates(1, steps=[4, 3], gamma=0.1, max_iter=5)
    with pytest.raises(ValueError, match="BASE_LR_END: 1.5.*BASE_LR, 1.0"):
        rates(1, name="WarmupCosineLR", base_lr_end=1.5, steps=[], gamma=0.1, max_iter=5)


def test_late_steps_are_told_once_and_have_no_effect(caplog):
    options = {"steps": [2, 7, 9], "gamma": 0.1, "max_iter": 7}
    assert [rates(7, **options) for _ in range(2)] == [pytest.approx([1] * 2 + [0.1] * 5)] * 2
    (message,) = caplog.messages
    assert message == "SOLVER.STEPS: [7, 9] are not before SOLVER.MAX_ITER, 7, and have no effect"


def test_the_schedules_are_the_choices_of_the_key():
    assert set(SCHEDULES) == set(KEYS["SOLVER.LR_SCHEDULER_NAME"].choices)


def test_a_further_schedule_is_one_function(monkeypatch):
    """It gets the warm-up of all, and the steps, which it does not read, may be anything."""
    monkeypatch.setitem(SCHEDULES, "Falling", lambda max_iter, **_: lambda i: 1 - i / max_iter)
    lr = rates(8, name="Falling", steps=[3, 2], gamma=0.1, max_iter=8, warmup_iters=4,
               warmup_factor=0.25)  # fmt: skip
    assert lr == pytest.approx([0.25, 0.3125, 0.375, 0.4375, 0.5, 0.375, 0.25, 0.125], rel=1e-12)


@pytest.mark.detectron2
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    "steps,max_iter,warmup_iters,factor,method",
    [
        ((30, 45), 60, 10, 0.001, "linear"),
        ((30, 45), 60, 10, 0.1, "constant"),
        ((5, 20), 60, 10, 0.01, "linear"),  # a step inside the warm-up
        ((), 7, 20, 0.01, "linear"),  # a warm-up longer than the training
        ((12_000, 16_000), 18_000, 100, 0.001, "linear"),
    ],
)
def test_every_iteration_equals_detectron2(name, steps, max_iter, warmup_iters, factor, method):
    from detectron2.config import get_cfg
    from detectron2.solver import build_lr_scheduler

    cfg = get_cfg()
    cfg.SOLVER.LR_SCHEDULER_NAME = name
    cfg.SOLVER.BASE_LR, cfg.SOLVER.BASE_LR_END = 0.02, 0.003
    cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER = steps, max_iter
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = warmup_iters, factor
    cfg.SOLVER.WARMUP_METHOD = method
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.02)
    theirs, schedule = [], build_lr_scheduler(cfg, optimizer)
    for _ in range(max_iter):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    ours = rates(
        max_iter,
        lr=0.02,
        name=name,
        steps=steps,
        gamma=cfg.SOLVER.GAMMA,
        max_iter=max_iter,
        base_lr_end=0.003,
        warmup_iters=warmup_iters,
        warmup_factor=factor,
        warmup_method=method,
    )
    assert ours == pytest.approx(theirs, rel=1e-12)


def small_net():
    conv, shared = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)
    frozen = nn.Linear(4, 4)
    frozen.requires_grad_(False)
    return nn.ModuleDict(
        {"conv": conv, "bn": nn.BatchNorm2d(4), "a": shared, "b": shared, "frozen": frozen}
    )


def described(optimizer, model):
    """Name of each parameter in the optimizer -> (lr, weight decay), refusing one held twice."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    result = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert names[parameter] not in result
            result[names[parameter]] = (group["lr"], group["weight_decay"])
    return result


def test_norms_and_biases_have_their_own_decay_and_rate():
    model = small_net()
    optimizer = build_optimizer(
        model, lr=0.1, momentum=0.9, weight_decay=1e-4, weight_decay_norm=0.0
    )
    assert described(optimizer, model) == {
        "conv.weight": (0.1, 1e-4),
        "conv.bias": (0.1, 1e-4),
        "bn.weight": (0.1, 0.0),
        "bn.bias": (0.1, 0.0),
        "a.weight": (0.1, 1e-4),
        "a.bias": (0.1, 1e-4),
    }
    optimizer = build_optimizer(
        model,
        lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        weight_decay_norm=0.5,
        weight_decay_bias=0.25,
        bias_lr_factor=2,
    )
    assert described(optimizer, model) == {
        "conv.weight": (0.1, 1e-4),
        "conv.bias": (0.2, 0.25),
        "bn.weight": (0.1, 0.5),
        "bn.bias": (0.2, 0.25),
        "a.weight": (0.1, 1e-4),
        "a.bias": (0.2, 0.25),
    }


@pytest.mark.detectron2
@pytest.mark.parametrize("norm,bias,factor", [(0.0, None, 1.0), (0.5, 0.25, 2.0)])
def test_groups_equal_detectron2(norm, bias, factor):
    from detectron2.config import get_cfg
    from detectron2.solver import build_optimizer as detectron2_build

    cfg = get_cfg()
    cfg.SOLVER.WEIGHT_DECAY_NORM, cfg.SOLVER.WEIGHT_DECAY_BIAS = norm, bias
    cfg.SOLVER.BIAS_LR_FACTOR = factor
    model = small_net()
    ours = build_optimizer(
        model,
        lr=cfg.SOLVER.BASE_LR,
        momentum=cfg.SOLVER.MOMENTUM,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=norm,
        weight_decay_bias=bias,
        bias_lr_factor=factor,
    )
    assert described(ours, model) == described(detectron2_build(cfg, model), model)


def test_a_wholly_frozen_model_is_refused():
    with pytest.raises(ValueError, match="frozen"):
        build_optimizer(
            nn.Linear(2, 2).requires_grad_(False),
            lr=0.1,
            momentum=0,
            weight_decay=0,
            weight_decay_norm=0,
        )


def test_clipping_is_per_parameter():
    one, two = (nn.Parameter(torch.zeros(2)) for _ in range(2))

    def gradients():
        one.grad, two.grad = torch.tensor([3.0, -4.0]), torch.tensor([0.3, 0.4])

    gradients()
    clip_gradients([one, two], kind="value", value=1.0)
    assert one.grad.tolist() == [1, -1]
    assert two.grad.tolist() == pytest.approx([0.3, 0.4])
    gradients()
    clip_gradients([one, two], kind="norm", value=1.0)
    assert one.grad.tolist() == pytest.approx([0.6, -0.8], abs=1e-6)
    assert two.grad.tolist() == pytest.approx([0.3, 0.4])
    gradients()
    clip_gradients([one, two], kind="norm", value=2.0, norm_type=float("inf"))
    assert one.grad.tolist() == pytest.approx([1.5, -2.0], abs=1e-5)
    with pytest.raises(ValueError, match="full_model"):
        clip_gradients([one], kind="full_model", value=1.0)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_in_one_pass_gives_torchs_numbers(nesterov):
    """The fused kernel against torch's loop, over five steps with momentum and both decays."""
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(300, 200), nn.BatchNorm1d(200))
    models = [copy.deepcopy(start) for _ in range(2)]
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-2, "nesterov": nesterov}
    ours = build_optimizer(models[0], **options, weight_decay_norm=0.0, bias_lr_factor=2.0)
    theirs = torch.optim.SGD(
        [{k: g[k] for k in ("params", "lr", "weight_decay")} for g in ours.param_groups],
        momentum=0.9, nesterov=nesterov,
    )  # fmt: skip
    for mine, other in zip(ours.param_groups, theirs.param_groups, strict=True):
        other["params"] = [dict(zip(models[0].parameters(), models[1].parameters()))[p]
                           for p in mine["params"]]  # fmt: skip
    for _ in range(5):
        for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        ours.step()
        theirs.step()
    for a, b, old in zip(*(m.parameters() for m in (*models, start)), strict=True):
        assert not torch.equal(a, old)
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
