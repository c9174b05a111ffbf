import copy
import itertools
import json
import logging
import os
import random
import re
import signal
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves
from toy import (
    Crash,
    Toy,
    assert_equal_runs,
    batches,
    crash,
    run,
    seeded,
    timeless,
    toy_optimizer,
    until,
)

from resnet_det.training import (
    Checkpointer,
    Plan,
    Trainer,
    build_optimizer,
    build_schedule,
    loop,
    precision,
    read_metrics,
)
from resnet_det.training.checkpoint import load
from resnet_det.training.metrics import Metrics


def greedy(model):
    """An evaluation that changes all random states and modes."""
    random.random(), np.random.rand(), torch.rand(7)
    model.eval()
    return {"bbox/AP": model(next(batches())).mean().item(), "bbox/AP-cat": float("nan")}


def test_one_iteration_is_one_step_of_sgd(tmp_path):
    model = run(tmp_path, max_iter=1)
    wanted = Toy()
    optimizer, _ = toy_optimizer(wanted, 1)
    outputs = wanted(next(batches()))
    (outputs["loss_square"] + outputs["loss_abs"]).backward()  # "error" is only logged
    optimizer.step()
    for ours, theirs in zip(model.parameters(), wanted.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    line = read_metrics(tmp_path / "metrics.json")[-1]
    assert line["total_loss"] == pytest.approx(line["loss_square"] + line["loss_abs"], rel=1e-6)
    assert line["error"] == pytest.approx(outputs["error"].item())


def test_a_line_has_the_median_of_losses_and_the_mean_of_errors(tmp_path):
    """Compares a line with its three iterations, computed separately with a learning rate of 0."""
    model, seen = Toy(), []
    stream = batches()
    for _ in range(3):
        seen.append({k: v.item() for k, v in model(next(stream)).items()})
    optimizer, schedule = toy_optimizer(model, 3)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = 0.0
    schedule.base_lrs = [0.0 for _ in schedule.base_lrs]
    Trainer(model, optimizer, schedule, tmp_path, Plan(3, checkpoint_period=3)).run(batches())
    (line,) = read_metrics(tmp_path / "metrics.json")
    errors, losses = (sorted(s[k] for s in seen) for k in ("error", "loss_square"))
    assert line["error"] == pytest.approx(sum(errors) / 3, rel=1e-6)
    assert line["loss_square"] == pytest.approx(losses[1], rel=1e-6)
    assert (
        abs(errors[1] * 3 / sum(errors) - 1) > 0.01 and abs(losses[1] * 3 / sum(losses) - 1) > 0.01
    )


def test_training_learns_and_leaves_the_files(tmp_path):
    run(tmp_path, max_iter=60, test=greedy, eval_period=25, checkpoint_period=20, log_period=10)
    lines = read_metrics(tmp_path / "metrics.json")
    losses = {line["iteration"]: line for line in lines if "total_loss" in line}
    assert list(losses) == [9, 19, 29, 39, 49, 59]
    assert [line["iteration"] for line in lines if "bbox/AP" in line] == [24, 49, 59]
    assert losses[59]["total_loss"] < losses[9]["total_loss"] / 3
    assert losses[9]["lr"] == pytest.approx(0.02) and losses[59]["lr"] == pytest.approx(0.002)
    assert losses[59]["eta_seconds"] == 0 < losses[9]["eta_seconds"]
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == [
        "model_0000019.pth",
        "model_0000039.pth",
        "model_final.pth",
    ]
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path)).Reload()
    values = {e.step: e.value for e in events.Scalars("total_loss")}
    assert values == pytest.approx({i: line["total_loss"] for i, line in losses.items()})
    assert [e.step for e in events.Scalars("bbox/AP")] == [24, 49, 59]


@pytest.mark.parametrize("at", [1, 5, 12, 13, 19])
def test_a_crashed_run_resumed_equals_the_uninterrupted_one(tmp_path, at):
    options = {"noise": 0.3, "test": greedy, "eval_period": 5}
    seeded()
    run(tmp_path / "whole", **options)
    seeded()
    with pytest.raises(Crash):
        run(tmp_path / "parts", stream=until(batches(), at, crash), **options)
    state = Checkpointer(tmp_path / "parts").load_latest()
    assert (state["iteration"] if state else 0) == at // 5 * 5
    if state is None:
        seeded()
    run(tmp_path / "parts", state=state, **options)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("momentum, nesterov, saved", [(0.5, True, 0.9), (0.0, False, 0.9),
                                                       (0.5, False, 0.0)])  # fmt: skip
def test_a_resumed_run_trains_by_the_current_settings(tmp_path, momentum, nesterov, saved):
    """One iteration from a checkpoint equals SGD by its definition, with its momentum and the new
    settings. At iteration 15 the learning rate is a tenth of the base rate."""

    def trainer(momentum, **settings):
        model = Toy()
        optimizer = build_optimizer(model, momentum=momentum, **settings)
        schedule = build_schedule(optimizer, steps=[10], gamma=0.1, max_iter=16)
        return Trainer(model, optimizer, schedule, tmp_path, Plan(16, checkpoint_period=15))

    first = trainer(saved, lr=0.02, weight_decay=1e-4, weight_decay_norm=0.0)
    with pytest.raises(Crash):
        first.run(until(batches(), 15, crash))
    state = Checkpointer(tmp_path).load_latest()
    again = trainer(
        momentum, lr=0.3, bias_lr_factor=1.0, weight_decay=0.01, weight_decay_norm=0.02,
        nesterov=nesterov,
    )  # fmt: skip
    again.resume(copy.deepcopy(state))  # the optimizer updates its buffers in place
    again.run(batches(start=15))
    model = Toy()
    model.load_state_dict(state["model"])
    outputs = model(next(batches(start=15)))
    (outputs["loss_square"] + outputs["loss_abs"]).backward()
    order = [p for g in again.optimizer.param_groups for p in g["params"]]
    names = {p: name for name, p in again.plain_model.named_parameters()}
    for index, parameter in enumerate(order):
        name = names[parameter]
        before = model.get_parameter(name)
        gradient = before.grad + (0.02 if name.startswith("body.1.") else 0.01) * before
        velocity = state["optimizer"]["state"].get(index, {}).get("momentum_buffer", 0)
        step = velocity = momentum * velocity + gradient
        if nesterov:
            step = gradient + momentum * velocity
        torch.testing.assert_close(parameter, before - 0.03 * step, rtol=1e-6, atol=1e-7)
    line = read_metrics(tmp_path / "metrics.json")[-1]
    assert line["lr"] == pytest.approx(0.03)


def test_a_resumed_run_with_other_groups_of_parameters_is_refused(tmp_path):
    """Its weight decay is that of norms, so all parameters are in one group."""
    run(tmp_path, max_iter=5)
    model, state = Toy(), Checkpointer(tmp_path).load_latest()
    optimizer = build_optimizer(
        model, lr=0.02, momentum=0.9, weight_decay=0.0, weight_decay_norm=0.0
    )
    schedule = build_schedule(optimizer, steps=[], gamma=0.1, max_iter=9)
    trainer = Trainer(model, optimizer, schedule, tmp_path, Plan(9, checkpoint_period=5))
    with pytest.raises(ValueError, match=r"groups of \[4, 2\] .* groups of \[6\].*WEIGHT_DECAY"):
        trainer.resume(state)


def test_an_evaluation_that_the_interruption_cut_off_is_made_up_for(tmp_path):
    calls = []

    def evaluate(model):
        calls.append(None)
        if len(calls) == 2:
            raise Crash
        return greedy(model)

    options = {"noise": 0.3, "eval_period": 5}
    seeded()
    run(tmp_path / "whole", test=greedy, **options)
    seeded()
    with pytest.raises(Crash):
        run(tmp_path / "parts", test=evaluate, **options)
    state = Checkpointer(tmp_path / "parts").load_latest()
    run(tmp_path / "parts", test=evaluate, state=state, **options)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    done = len(calls)
    run(tmp_path / "parts", test=evaluate, state=Checkpointer(tmp_path / "parts").load_latest())
    assert len(calls) == done  # a finished run has nothing to make up for
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_evaluation_does_not_change_training(tmp_path):
    for name, options in {"with": {"test": greedy, "eval_period": 4}, "without": {}}.items():
        seeded()
        run(tmp_path / name, noise=0.3, **options)
    states = [Checkpointer(tmp_path / name).load_latest()["model"] for name in ("with", "without")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_modes_of_modules_survive_evaluation(tmp_path):
    modes = []

    def evaluate(model):
        modes.append({name: module.training for name, module in model.named_modules()})
        return greedy(model)

    run(tmp_path, test=evaluate, eval_period=4)
    assert len(modes) == 5 and all(m == modes[0] for m in modes)
    assert modes[0]["last"] and not modes[0]["body.1"]  # a layer that the model keeps frozen


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_after_the_next_iteration(tmp_path, number):
    before = signal.getsignal(number)
    options = {"noise": 0.3}
    seeded()
    run(tmp_path / "whole", **options)
    seeded()
    terminate = until(batches(), 7, lambda: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "parts", stream=terminate, **options)
    assert stopped.value.code == 128 + number
    assert signal.getsignal(number) == before
    state = Checkpointer(tmp_path / "parts").load_latest()
    assert state["iteration"] == 9
    run(tmp_path / "parts", state=state, **options)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_signal_after_the_losses_were_sent_stops_one_iteration_later(tmp_path, monkeypatch):
    """Two iterations follow the one in progress: one sends the signal, the next one reads it."""
    update = Trainer._update

    def interrupted(trainer):
        update(trainer)
        if trainer.iteration == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "_update", interrupted)
    with pytest.raises(SystemExit):
        run(tmp_path, checkpoint_period=20)
    assert Checkpointer(tmp_path).load_latest()["iteration"] == 9


def test_the_third_interrupt_ends_at_once(tmp_path):
    def thrice():
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stream=until(batches(), 7, thrice))


def poisoned(iteration, bad=float("nan")):
    for i, batch in enumerate(batches()):
        if i == iteration:
            batch[2]["y"] = torch.tensor(bad)
        yield batch


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_names(tmp_path, bad):
    with pytest.raises(FloatingPointError) as error:
        run(tmp_path, stream=poisoned(7, bad))
    for part in ("iteration 7", "loss_square = ", "loss_abs = ", "image_7_0.jpg, image_7_1.jpg"):
        assert part in str(error.value)
    state = Checkpointer(tmp_path).load_latest()
    assert state["iteration"] == 5
    assert all(v.isfinite().all() for v in state["model"].values())


@pytest.mark.parametrize("at, dtype", [(1, None), (2, None), (7, None), (15, None),
                                       (7, torch.float16), (1, torch.float16)])  # fmt: skip
def test_the_checkpoint_of_a_failed_iteration_is_from_just_before_it(
    tmp_path, monkeypatch, at, dtype
):
    """Though the next forward pass ran before it was noticed, all states are those of a run that
    saved there: weights, momentum, learning rates, loss scale, random states, values to log."""
    monkeypatch.setattr(loop, "amp_dtype", lambda device: dtype)
    options = {"noise": 0.3, "log_period": 4, "amp": dtype is not None}
    seeded()
    run(tmp_path / "whole", checkpoint_period=at, **options)
    seeded()
    with pytest.raises(FloatingPointError, match=f"iteration {at}:"):
        run(tmp_path / "parts", stream=poisoned(at), **options)
    failed, wanted = (
        torch.load(tmp_path / name, weights_only=True)
        for name in (f"parts/not_finite_{at:07d}.pth", f"whole/model_{at - 1:07d}.pth")
    )
    assert failed.keys() == wanted.keys()
    for state in (failed, wanted):
        for name in ("time", "data_time"):
            state["window"].pop(name, None)
    for one, other in zip(tree_leaves(failed), tree_leaves(wanted), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_failed_first_iteration_changes_nothing(tmp_path):
    with pytest.raises(FloatingPointError, match="iteration 0:"):
        run(tmp_path, stream=poisoned(0))
    state = torch.load(tmp_path / "not_finite_0000000.pth", weights_only=True)
    for name, value in Toy().state_dict().items():
        assert torch.equal(state["model"][name], value), name
    for momentum in state["optimizer"]["state"].values():
        assert not momentum["momentum_buffer"].any()


def test_losses_are_read_while_the_next_iteration_runs(tmp_path):
    """The batch after the one that fails was already drawn and run, and none after it; at an
    evaluation or a checkpoint, nothing is left unread."""
    for at, drawn in ((8, 10), (9, 10)):  # a checkpoint follows iteration 9
        asked = []

        def counted(stream, asked=asked):
            for batch in stream:
                asked.append(None)
                yield batch

        with pytest.raises(FloatingPointError, match=f"iteration {at}:"):
            run(tmp_path / str(at), stream=counted(poisoned(at)))
        assert len(asked) == drawn


def test_a_batch_is_freed_before_the_next_one_is_drawn(tmp_path):
    """Though its losses are read later: two batches on a GPU would take twice the memory."""
    model, alive = Toy(), []
    trainer = Trainer(model, *toy_optimizer(model), tmp_path, Plan(20, checkpoint_period=20))
    for batch in itertools.islice(batches(), 3):
        trainer.step(batch)
        alive.append(weakref.ref(batch[0]["x"]))
        del batch
        assert alive[-1]() is None


def test_a_checkpoint_of_another_net_is_refused(tmp_path):
    model = Toy()
    trainer = Trainer(model, *toy_optimizer(model), tmp_path, Plan(1, checkpoint_period=1))
    trainer.run(batches())
    state = load(tmp_path / "model_final.pth")
    state["model"].popitem()
    with pytest.raises(ValueError, match="does not fit the config's net.*Missing key"):
        trainer.resume(state)


def test_resume_needs_no_particular_place_to_log(tmp_path):
    """The values since the last line travel in the checkpoint: log every 7, save every 5."""
    seeded()
    run(tmp_path / "whole", log_period=7)
    with pytest.raises(Crash):
        run(tmp_path / "parts", stream=until(batches(), 17, crash), log_period=7)
    state = Checkpointer(tmp_path / "parts").load_latest()
    run(tmp_path / "parts", state=state, log_period=7)
    assert [line["iteration"] for line in timeless(tmp_path / "parts")] == [6, 13, 19]
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_metrics_of_a_run_that_went_too_far_are_dropped(tmp_path):
    lines = [{"iteration": i, "total_loss": 1.0} for i in (4, 9, 14)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.json").write_text(text + '{"iteration": 19, "tot')
    Metrics(tmp_path, 10).close()
    assert read_metrics(tmp_path / "metrics.json") == lines[:2]
    Metrics(tmp_path, 0).close()
    assert read_metrics(tmp_path / "metrics.json") == []
    (tmp_path / "metrics.json").write_text('not json\n{"iteration": 3}\n')
    with pytest.raises(ValueError, match="metrics.json, line 1"):
        read_metrics(tmp_path / "metrics.json")


def test_clip_is_applied_before_the_step(tmp_path):
    norms = []

    def clip(parameters):
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 0.0).item())

    model = run(tmp_path, max_iter=1, clip=clip)
    assert norms[0] > 0.01
    # Only weight decay is left: each decayed weight shrinks by lr * decay, lr being the warm-up's.
    rate = 0.02 * 0.001
    torch.testing.assert_close(model.last.weight, Toy().last.weight * (1 - rate * 1e-4))


def test_the_log_states_images_per_second(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "resnet_det"):
        run(tmp_path, max_iter=3, images=4)
    line = read_metrics(tmp_path / "metrics.json")[-1]
    (shown,) = re.findall(r"images/s: (\S+)", caplog.text)
    assert float(shown) == pytest.approx(4 / line["time"], rel=1e-3)


def test_what_the_loop_cannot_do_is_said(tmp_path):
    with pytest.raises(ValueError, match="iteration 1 of 20"):
        run(tmp_path, stream=iter([next(batches())]))


@pytest.mark.parametrize("hardware", [True, False])
def test_mixed_precision_on_the_cpu(hardware, tmp_path, monkeypatch, caplog):
    """bfloat16 where the CPU has it: other losses than float32's, by its 8 bits; else float32."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: hardware)
    for name, amp in (("mixed", True), ("single", False)):
        model = run(tmp_path / name, amp=amp)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert ("bfloat16" in caplog.text) is not hardware
    pairs = list(zip(timeless(tmp_path / "mixed"), timeless(tmp_path / "single"), strict=True))
    differences = [abs(m["total_loss"] / s["total_loss"] - 1) for m, s in pairs]
    assert (max(differences) > 1e-6) is hardware
    assert max(differences) < 0.05


def test_the_type_of_mixed_precision(monkeypatch):
    types = {}
    for hardware in (True, False):
        monkeypatch.setattr(precision, "has_bfloat16", lambda device, has=hardware: has)
        types[hardware] = [precision.amp_dtype(device) for device in ("cuda", "cuda:1", "cpu")]
    assert types[True] == [torch.bfloat16] * 3
    assert types[False] == [torch.float16, torch.float16, torch.float32]


def test_the_hardware_says_itself_what_it_has():
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else None
    if flags is None or "flags" not in flags:
        pytest.skip("no /proc/cpuinfo of an x86 CPU")
    assert precision.has_bfloat16("cpu") == any(f in flags for f in ("avx512_bf16", "amx_bf16"))


@pytest.mark.gpu
def test_mixed_precision_trains_and_resumes(tmp_path):
    def once(folder, state=None, stop=None):
        stream = batches(start=state["iteration"] if state else 0)
        stream = (
            [{k: v.cuda() if k != "file_name" else v for k, v in s.items()} for s in batch]
            for batch in stream
        )
        run(folder, state=state, stream=until(stream, stop, crash), device="cuda", amp=True)

    once(tmp_path / "whole")
    with pytest.raises(Crash):
        once(tmp_path / "parts", stop=12)
    once(tmp_path / "parts", state=Checkpointer(tmp_path / "parts").load_latest())
    scaled = bool(Checkpointer(tmp_path / "parts").load_latest()["scaler"])
    assert scaled is not precision.has_bfloat16("cuda")
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_finish_runs_once_before_the_last_checkpoint_and_its_evaluation(tmp_path):
    """Precise BN needs this: the model that ``finish`` changed is saved and evaluated."""
    seen = []

    def finish(model):
        seen.append("finish")
        with torch.no_grad():
            model.last.bias.fill_(42.0)

    def evaluate(model):
        seen.append(model.last.bias.item())
        return {}

    run(tmp_path, max_iter=6, finish=finish, test=evaluate)
    assert seen == ["finish", 42.0]
    saved = {n: torch.load(tmp_path / f"{n}.pth", weights_only=True)["model"]["last.bias"].item()
             for n in ("model_0000004", "model_final")}  # fmt: skip
    assert saved["model_final"] == 42.0 != saved["model_0000004"]


def scores(values):
    """An evaluation that gives these values of bbox/AP, one after the other."""
    values = iter(values)
    return lambda model: {"bbox/AP": next(values)}


BEST = {"best_metric": "bbox/AP", "eval_period": 5, "max_iter": 40}


@pytest.mark.parametrize(
    "values, best",
    [([1, 3, 2, 3, 1, 1, 1, 2], 2), ([1, 2, 3, 4, 5, 6, 7, 8], 8), ([9, 2, 3, 4, 5, 6, 7, 8], 1),
     ([float("nan"), 0, 0, 0, 0, 0, 0, 0], 2)],
)  # fmt: skip
def test_the_best_checkpoint_is_kept(tmp_path, values, best):
    """It is the checkpoint of that iteration, and the newest one stays the one to resume from."""
    run(tmp_path, test=scores(values), **BEST)
    kept = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert kept["iteration"] == 5 * best
    name = "model_final" if best == 8 else f"model_{5 * best - 1:07d}"
    same = torch.load(tmp_path / f"{name}.pth", weights_only=True)["model"]
    assert all(torch.equal(value, same[key]) for key, value in kept["model"].items())
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_an_evaluation_between_checkpoints_waits_for_the_losses(tmp_path):
    """The line of its iteration stands before its own, and the best checkpoint is complete."""
    options = {"log_period": 3, "noise": 0.3, "max_iter": 6}
    seeded()
    run(tmp_path / "best", test=scores([2, 1]), eval_period=3, best_metric="bbox/AP", **options)
    seeded()
    run(tmp_path / "saved", checkpoint_period=3, **options)
    lines = [(line["iteration"], "bbox/AP" in line) for line in timeless(tmp_path / "best")]
    assert lines == [(2, False), (2, True), (5, False), (5, True)]
    best = torch.load(tmp_path / "best/model_best.pth", weights_only=True)
    saved = torch.load(tmp_path / "saved/model_0000002.pth", weights_only=True)
    for one, other in zip(tree_leaves(best), tree_leaves(saved), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("patience, last", [(1, 15), (2, 20), (3, 25), (4, 40), (0, 40)])
def test_a_run_ends_when_its_patience_does(tmp_path, patience, last):
    values = [1, 3, 2, 2.5, 3, 4, 3, 9]  # the second 3 is no improvement
    run(tmp_path, test=scores(values), patience=patience, **BEST)
    assert Checkpointer(tmp_path).load_latest()["iteration"] == last
    assert (tmp_path / "model_final.pth").is_file()


@pytest.mark.parametrize("at", [4, 12, 15, 17, 29])
def test_a_resumed_run_keeps_the_same_best_and_ends_at_the_same_time(tmp_path, at):
    """Values by iteration, so that an evaluation that is repeated gives the same."""
    values = dict(zip(range(5, 45, 5), [1, 5, 2, 6, 3, 4, 4, 4]))

    def train(folder, state=None, stream=None):
        start = done = state["iteration"] if state else 0

        def counted():
            nonlocal done  # iterations begun
            for batch in stream or batches(start=start):
                done += 1
                yield batch

        run(folder, state=state, stream=counted(), test=lambda _: {"bbox/AP": values[done]},
            patience=3, noise=0.3, **BEST)  # fmt: skip

    seeded()
    train(tmp_path / "whole")
    seeded()
    with pytest.raises(Crash):
        train(tmp_path / "parts", stream=until(batches(), at, crash))
    state = Checkpointer(tmp_path / "parts").load_latest()
    if state is None:
        seeded()
    train(tmp_path / "parts", state)
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")
    whole, parts = (torch.load(tmp_path / f / "model_best.pth", weights_only=True)
                    for f in ("whole", "parts"))  # fmt: skip
    assert whole["iteration"] == parts["iteration"] == 20
    assert all(torch.equal(v, parts["model"][k]) for k, v in whole["model"].items())
    done = read_metrics(tmp_path / "parts" / "metrics.json")
    train(tmp_path / "parts", Checkpointer(tmp_path / "parts").load_latest())
    assert read_metrics(tmp_path / "parts" / "metrics.json") == done  # it has ended


def test_a_metric_that_no_evaluation_gives_is_an_error(tmp_path):
    options = BEST | {"best_metric": "bbox/AP5"}
    with pytest.raises(ValueError, match="BEST.METRIC: bbox/AP5: .* did you mean bbox/AP?"):
        run(tmp_path, test=scores([1]), **options)
