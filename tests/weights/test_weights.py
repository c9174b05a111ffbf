"""Weight import against torchvision's own networks, by output."""

import argparse
import json
import logging
import os
import pickle
import random
import re
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from resnet_det.nets import build_net
from resnet_det.nets.fast import speed_up
from resnet_det.nets.resnet import PadShortcut
from resnet_det.weights.files import write_file
from resnet_det.weights.loading import WeightsError, load, read
from resnet_det.weights.torch_files import read_torch


@pytest.fixture
def checkpoint(tmp_path):
    net = build_net("cifar_resnet20")
    path = tmp_path / "net.pth"
    torch.save({"model": net.state_dict(), "meta": {"net": "cifar_resnet20"}}, path)
    return net, path


def test_own_checkpoint_round_trip(checkpoint):
    net, path = checkpoint
    other = build_net("cifar_resnet20")
    match = load(other, path)
    assert match.facts == {"net": "cifar_resnet20"}
    for key, value in net.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_a_classifier_fills_a_detectors_trunk_and_head(checkpoint):
    net, path = checkpoint
    other = build_net("cifar_resnet20", norm="FrozenBN")
    trunk, head = other.split()
    detector = torch.nn.ModuleDict({"backbone": trunk, "roi_heads": head})
    match = load(detector, path, drop=("linear.",))
    assert set(match.unused) == {"linear.weight", "linear.bias"} and not match.missing
    assert torch.equal(detector["roi_heads"].res4[0].conv1.weight, net.res4[0].conv1.weight)
    with pytest.raises(WeightsError, match="linear.weight"):
        load(detector, path)


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda: build_net("cifar_resnet32"), "lacks"),
        (lambda: build_net("paper_resnet18"), "does not fit"),
        (lambda: build_net("cifar_resnet20", num_classes=7), "other shapes: linear.weight (7, 64)"),
        (lambda: torch.nn.Linear(2, 2), "0 tensors loaded"),
    ],
)
def test_misfits_are_errors(checkpoint, build, words):
    with pytest.raises(WeightsError) as error:
        load(build(), checkpoint[1])
    assert words in str(error.value) and str(checkpoint[1]) in str(error.value)


def test_partial_only_when_asked(checkpoint):
    match = load(build_net("cifar_resnet20", num_classes=7), checkpoint[1], partial=True)
    assert set(match.mismatched) == {"linear.weight", "linear.bias"}
    load(build_net("cifar_resnet20", num_classes=7), checkpoint[1], new=("linear.",))
    with pytest.raises(WeightsError, match="0 tensors"):
        load(torch.nn.Linear(2, 2), checkpoint[1], partial=True)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hostile-code-ran",)


def test_hostile_and_broken_files_are_refused(tmp_path, monkeypatch, checkpoint):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Hostile()}, "torch.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"model": Hostile()}))
    (tmp_path / "empty.pth").write_bytes(b"")
    (tmp_path / "short.pth").write_bytes(checkpoint[1].read_bytes()[:5000])
    torch.save({"model": {}}, "nothing.pth")
    torch.save({"model": {"a": 1}}, "number.pth")
    files = ["torch.pth", "plain.pth", "empty.pth", "short.pth", "nothing.pth", "number.pth"]
    for name in [*files, "absent.pth"]:
        with pytest.raises(WeightsError, match=name):
            read(name)
    assert not (tmp_path / "hostile-code-ran").exists()


@pytest.mark.parametrize("value", [10**400, float("nan"), "1", True])
def test_a_mean_that_is_no_number_is_refused(tmp_path, value):
    facts = {"pixel_mean": [1.0, 2.0, value]}
    torch.save({"model": {"x": torch.ones(2)}, "meta": facts}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="a.pth: its fact 'pixel_mean' must be a list of finite"):
        read(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["notes.txt", "notes.pth"])
def test_text_is_refused_in_plain_words(tmp_path, name):
    (tmp_path / name).write_text("hello weights\n")
    with pytest.raises(WeightsError) as caught:
        read(tmp_path / name)
    assert str(caught.value) == (
        f"{tmp_path / name}: holds no weights: torch.save writes a zip archive or a pickle, and "
        "this is neither; give a .pth, .pkl or .safetensors file"
    )


NOT_WEIGHTS = {
    "markdown": b"# Title\n",
    "json": b'{"a": 1}',
    "JPEG": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    "random": bytes(random.Random(0).randbytes(5000)),
    "like a pickle": b"\x80\x02" + random.Random(1).randbytes(5000),
}


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors", ".jpg"])
@pytest.mark.parametrize("kind", NOT_WEIGHTS)
def test_other_files_hold_no_weights(tmp_path, kind, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_bytes(NOT_WEIGHTS[kind])
    with pytest.raises(WeightsError, match="holds no (readable )?(weights|arrays)") as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert not re.search("(Key|Index|Value|Type|EOF|Unicode)[A-Za-z]*Error", str(caught.value))


def test_another_zip_archive_is_refused_in_plain_words(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    with pytest.raises(WeightsError, match="holds no readable weights: it is a zip archive, but "):
        read(tmp_path / "a.npz")


def test_a_path_that_is_no_file_is_explained(tmp_path):
    with pytest.raises(WeightsError) as caught:
        read(tmp_path)
    assert str(caught.value) == f"{tmp_path}: is a folder; give a file in it"
    (tmp_path / "model_final.pth").touch()
    with pytest.raises(WeightsError) as caught:
        read(tmp_path)
    assert str(caught.value) == f"{tmp_path}: is a folder; give {tmp_path / 'model_final.pth'}"
    with pytest.raises(WeightsError) as caught:
        read("foo://x")
    assert str(caught.value) == (
        "foo://x: unknown scheme foo://; give a file or an address that begins with https://, "
        "http://, resnet_det://, detectron2:// or torchvision://"
    )


def test_pickles_of_arrays_are_read_and_others_refused(tmp_path, monkeypatch):
    """Detectron2's .pkl, without what a pickle may call."""
    monkeypatch.chdir(tmp_path)
    net = build_net("cifar_resnet20")
    arrays = {k: v.numpy() for k, v in net.state_dict().items()}
    Path("net.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody"}))
    other = build_net("cifar_resnet20")
    load(other, "net.pkl")
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in net.state_dict().items())
    Path("hostile.pkl").write_bytes(pickle.dumps({"model": Hostile()}))
    Path("short.pkl").write_bytes(Path("net.pkl").read_bytes()[:999])
    for name in ("hostile.pkl", "short.pkl"):
        with pytest.raises(WeightsError, match=name):
            read(name)
    assert not Path("hostile-code-ran").exists()


class Anything:
    """A class that the reader does not have: a list, a dict and attributes, built by a call."""

    def __reduce__(self):
        return Anything, (), {"rate": 0.1}, iter([1]), iter([("a", 2)])

    def append(self, item):
        pass

    def __setitem__(self, key, value):
        pass


@pytest.mark.parametrize("suffix, options", [
    (".pth", {}), (".pth", {"_use_new_zipfile_serialization": False}), (".pkl", {"protocol": 2}),
    (".pkl", {"protocol": 4}),
])  # fmt: skip
def test_tensors_are_read_beside_other_objects_and_nothing_runs(
    suffix, options, tmp_path, monkeypatch, caplog
):
    """Checkpoints as trainers write them; torch.load(weights_only=True) refuses each."""
    monkeypatch.chdir(tmp_path)
    net = build_net("cifar_resnet20")
    optimizer = torch.optim.AdamW(net.parameters())
    sum(p.sum() for p in net.parameters()).backward()
    optimizer.step()
    state = net.state_dict()
    if suffix == ".pkl":
        state = {key: value.numpy() for key, value in state.items()}
    content = {
        "state_dict": {"epoch": np.int64(3), "state_dict": state},
        "args": argparse.Namespace(lr=0.1, path=Path("a")),
        "best": np.float64(0.5),
        "optimizer_states": [optimizer.state_dict()] if suffix == ".pth" else [],
        "callbacks": {Anything: {"best": Anything()}},
        "hostile": Hostile(),
    }
    path = Path(f"it{suffix}")
    if suffix == ".pth":
        torch.save(content, path, **options)
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)
    else:
        path.write_bytes(pickle.dumps(content, **options))
    with caplog.at_level(logging.INFO):
        tensors, _ = read(path)
    assert all(torch.equal(value, tensors[key]) for key, value in net.state_dict().items())
    assert "left unread: objects of argparse.Namespace" in caplog.text
    assert f"{os.system.__module__}.system" in caplog.text
    assert not Path("hostile-code-ran").exists()


def test_tensors_keep_their_views_types_and_sharing(tmp_path):
    """As torch.load reads them, from both of torch's formats."""
    whole = torch.arange(24.0).view(4, 6)
    content = {
        "a": whole.t(), "b": whole[1:3, ::2], "c": whole, "half": whole.half(), "d": whole.bfloat16(),
        "int": torch.tensor(3), "empty": torch.zeros(0, 4), "bool": whole > 3, "double": whole.double(),
        "p": torch.nn.Parameter(whole), "byte": whole.byte(),
    }  # fmt: skip
    for new in (True, False):
        path = tmp_path / "it.pth"
        torch.save(content, path, _use_new_zipfile_serialization=new)
        found, expected = read_torch(path), torch.load(path, weights_only=True)
        for key, value in expected.items():
            assert torch.equal(found[key], value) and found[key].dtype is value.dtype, key
            assert found[key].stride() == value.stride(), key
        assert found["a"].data_ptr() == found["c"].data_ptr()


def test_a_pickled_module_says_what_to_save(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "it.pth")
    _refused(tmp_path / "it.pth", r"an object of torch.nn.modules.linear.Linear: save its state_d")


def _refused(path, words="."):
    with pytest.raises(WeightsError, match=words) as error:
        read(path)
    assert str(path) in str(error.value)


def test_pickles_cannot_take_memory_that_they_do_not_fill(tmp_path):
    """Sizes, shapes and memo indices far beyond the file: refused at once, nothing allocated."""
    shape = b"(cnumpy\nndarray\nK\x00\x85C\x01bt"
    array = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n" + shape + b"R"
    dtype = b"cnumpy\ndtype\n(X\x02\x00\x00\x00f4I00\nI01\ntR"
    claimed = array + b"(K\x01" + b"I99999999999\n\x85" + dtype + b"I00\nC\x08abcdefghtb."
    files = {
        "shape.pkl": claimed,
        "bytes.pkl": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"abc.",
        "memo.pkl": b"\x80\x02}r\xff\xff\xff\x7f.",  # the C unpickler fills 32 GB for this
        "ndarray.pkl": b"\x80\x02cnumpy\nndarray\n(I1000000\nI1000000\ntR.",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        tracemalloc.start()
        _refused(tmp_path / name)
        assert tracemalloc.get_traced_memory()[1] < 2**20, name
        tracemalloc.stop()


def test_torchs_files_are_refused_what_weights_do_not_need(tmp_path):
    """weights_only=True alone would allocate these, or hand out tensors without numbers."""

    class Bytes:
        def __reduce__(self):
            return bytearray, (2**38,)

    torch.save({"model": Bytes()}, tmp_path / "bytes.pth")
    torch.save({"a": Bytes()}, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"a": torch.zeros(2, device="meta")}, tmp_path / "meta.pth")
    torch.save({"a": torch.zeros(2, 2).to_sparse()}, tmp_path / "sparse.pth")
    torch.save({"a": torch.zeros(9)}, tmp_path / "stored.pth")
    with (
        zipfile.ZipFile(tmp_path / "stored.pth") as stored,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for name in stored.namelist():
            bomb.writestr(name, stored.read(name))
    _refused(tmp_path / "bytes.pth", "bytearray")
    _refused(tmp_path / "legacy.pth", "bytearray")
    _refused(tmp_path / "meta.pth")
    _refused(tmp_path / "sparse.pth")
    _refused(tmp_path / "bomb.pth", "compressed")
    torch.save({"a": torch.zeros(2) + 1j}, tmp_path / "complex.pth")
    _refused(tmp_path / "complex.pth", "complex")
    torch.save({"a": torch.ones(9)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read(tmp_path / "old.pth")[0]["a"].tolist() == [1] * 9


def test_safetensors_with_bad_headers_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    write_file(path, {"a": torch.ones(3)}, {"format": "BGR"})
    assert read(path)[1] == {"format": "BGR"}
    good = path.read_bytes()
    header = json.loads(good[8 : 8 + int.from_bytes(good[:8], "little")])
    header["a"]["data_offsets"] = [0, 2**40]
    text = json.dumps(header).encode()
    for bad in (
        b"", good[:5], good[:-1], (2**62).to_bytes(8, "little") + good[8:],
        (10**8).to_bytes(8, "little") + good[8:], (3).to_bytes(8, "little") + good[8:],
        len(text).to_bytes(8, "little") + text + good[-12:],
    ):  # fmt: skip
        path.write_bytes(bad)
        _refused(path)
    for facts in ({"format": 3}, {"pixel_mean": ["a"]}, {"classes": [1]}, {"pixel_std": [1e999]}):
        write_file(path, {"a": torch.ones(3)}, facts)
        _refused(path, next(iter(facts)))


def test_weights_that_are_not_finite_are_refused(checkpoint):
    net, path = checkpoint
    net.res3[1].conv2.weight.data[3, 2, 1, 0] = float("nan")
    torch.save(net.state_dict(), path)
    with pytest.raises(WeightsError, match="res3.1.conv2.weight holds values that are not finite"):
        load(net, path)


def test_option_a_of_another_project_must_say_where_its_zeros_stand(tmp_path, checkpoint, caplog):
    """A file with other names, converted or not, is an error unless it states zeros "end"."""
    net, own = checkpoint
    foreign, path = to_their_names(net), tmp_path / "it.pth"
    torch.save(foreign, path)
    words = r"it.pth: .*each side .*convert_weights.py --zeros both .*it.pth OUT.pth.*--zeros end"
    with pytest.raises(WeightsError, match=words):
        load(build_net("cifar_resnet20"), path)
    state, facts = read(path)
    trunk, head = build_net("cifar_resnet20").split()
    detector = torch.nn.ModuleDict({"backbone": trunk, "roi_heads": head})
    write_file(path, state, facts)
    with pytest.raises(WeightsError, match=words):
        load(detector, path, drop=("linear.",))
    load(build_net("cifar_plain20"), path)
    write_file(path, state, facts | {"zeros": "end"})
    load(build_net("cifar_resnet20"), path)
    write_file(path, state, facts | {"zeros": "both"})
    with pytest.raises(WeightsError, match="it.pth: its fact 'zeros'"):
        load(build_net("cifar_resnet20"), path)
    for content, warned in ((net.state_dict(), True), (torch.load(own), False)):
        caplog.clear()
        torch.save(content, path)
        load(build_net("cifar_resnet20"), path)
        assert ("it.pth: carries no facts" in caplog.text) is warned


@pytest.mark.parametrize("held, net", [
    ("cifar_resnet20", "cifar_plain20"), ("cifar_plain20", "cifar_resnet20"),
])  # fmt: skip
def test_a_plain_nets_weights_are_no_residual_nets(held, net, tmp_path):
    """A plain net's and a residual net's tensors have the same names and shapes."""
    meta = {"net": held, "format": "BGR"}
    write_file(tmp_path / "it.pth", build_net(held).state_dict(), meta)
    load(build_net(held), tmp_path / "it.pth")
    with pytest.raises(WeightsError, match=f"it.pth: holds {held}, .*different outputs"):
        load(build_net(net), tmp_path / "it.pth")


@pytest.mark.parametrize("held", [True, False])
def test_a_stride_on_the_other_convolution_is_refused(held, tmp_path):
    """The tensors are the same, the outputs are not. Fast trunks and heads have moved strides."""
    path = tmp_path / "it.pth"
    wrong, right = (
        build_net("paper_resnet50", 11, norm="FrozenBN", stride_in_1x1=x) for x in (not held, held)
    )
    write_file(path, right.state_dict(), {"stride_in_1x1": held})
    for part in (right, *map(speed_up, right.split())):
        load(part, path, drop=("stem.", "res", "linear."))
    for part in (wrong, *map(speed_up, wrong.split())):
        with pytest.raises(WeightsError, match=rf"it.pth: .*build it with stride_in_1x1={held}"):
            load(part, path, drop=("stem.", "res", "linear."))
    load(build_net("paper_resnet18", 11), save_as(path, "paper_resnet18", held))  # no bottlenecks


def save_as(path, name, held):
    write_file(path, build_net(name, 11).state_dict(), {"stride_in_1x1": held})
    return path


def test_torchvisions_names_suggest_the_stride(tmp_path):
    torch.save(torchvision.models.resnet50(num_classes=11).state_dict(), tmp_path / "it.pth")
    load(build_net("paper_resnet50", 11, stride_in_1x1=False), tmp_path / "it.pth")
    command = "tools/convert_weights.py .*it.pth OUT.pth MODEL.RESNETS.STRIDE_IN_1X1 True"
    with pytest.raises(WeightsError, match=f"on the 3x3 .*{command}"):
        load(build_net("paper_resnet50", 11), tmp_path / "it.pth")


def test_a_shortcut_that_only_subsamples_is_no_option_a(tmp_path):
    """The last blocks of a fast trunk have such shortcuts."""
    net = build_net("paper_resnet50", 11, norm="FrozenBN")
    write_file(tmp_path / "it.pth", net.state_dict(), {"net": "paper_resnet50", "format": "BGR"})
    trunk = speed_up(net.split()[0])
    assert any(isinstance(m, PadShortcut) for m in trunk.modules())
    detector = torch.nn.ModuleDict({"backbone": trunk})
    assert not load(detector, tmp_path / "it.pth", drop=("res5.", "linear.")).missing


def to_their_names(net):
    """The tensors of a CIFAR net of ours with the names of common PyTorch versions."""
    names = {"stem.": "", "res2.": "layer1.", "res3.": "layer2.", "res4.": "layer3."}
    state = {}
    for key, value in net.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        state[re.sub(r"conv(\d)\.norm", r"bn\1", key)] = value
    return state
