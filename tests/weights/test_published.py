"""Weights by address: the table against its publishers, and downloads from a server on this
machine."""

import fcntl
import hashlib
import multiprocessing
from pathlib import Path

import pytest
import torch
from foreign import msra_blobs
from torchvision.models import get_model_weights

from resnet_det.config.defaults import ConfigError
from resnet_det.config.loading import load_config
from resnet_det.nets import build_net
from resnet_det.weights import docs, published
from resnet_det.weights.facts import check_facts
from resnet_det.weights.loading import WeightsError, interpret, load, read
from resnet_det.weights.published import (
    PUBLISHED,
    Checksum,
    Published,
    cached_path,
    local_file,
    url_of,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_DET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# ---- the table


@pytest.mark.parametrize(
    "entry", [e for e in PUBLISHED if e.publisher == "torchvision"], ids=lambda entry: entry.name
)
def test_torchvision_states_the_same(entry):
    name, version = entry.name.removeprefix("torchvision://").split(".")
    theirs = get_model_weights(name)[version]
    assert entry.url == theirs.url
    digits = theirs.url.removesuffix(".pth").rsplit("-", 1)[1]  # as torch.hub verifies
    assert entry.checksum == ("sha256", digits)
    assert url_of(f"torchvision://{name}") == next(iter(get_model_weights(name))).url
    metrics = {k: v for values in theirs.meta["_metrics"].values() for k, v in values.items()}
    value = metrics.get("box_map", 100 - metrics.get("acc@1", 0))
    assert f"{value:.{1 if 'box_map' in metrics else 2}f}" in entry.accuracy
    if not entry.config:
        pixels = theirs.transforms()
        assert entry.facts["pixel_mean"] == pytest.approx([255 * x for x in pixels.mean])
        assert entry.facts["pixel_std"] == pytest.approx([255 * x for x in pixels.std])


@pytest.mark.detectron2
def test_detectron2s_model_zoo_has_the_same_addresses():
    from detectron2 import model_zoo

    for entry in PUBLISHED:
        if entry.publisher == "Detectron2":
            name = entry.file.split("/")[1]
            assert model_zoo.get_checkpoint_url(f"COCO-Detection/{name}.yaml") == entry.url
            zoo = model_zoo.get_config(f"COCO-Detection/{name}.yaml")
            check_facts(entry.facts, load_config(entry.config), entry.name)
            assert entry.facts["pixel_mean"] == list(zoo.MODEL.PIXEL_MEAN)
            assert entry.facts["stride_in_1x1"] == zoo.MODEL.RESNETS.STRIDE_IN_1X1


def test_the_page_holds_the_table():
    page = (ROOT / "docs/weights.md").read_text()
    assert docs.renewed(page) == page and PUBLISHED[0].name in page


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda p: p.stem)
def test_configs_have_the_conventions_of_the_weights_that_they_name(path):
    cfg = load_config(path)
    if entry := published.find(cfg.MODEL.WEIGHTS):
        check_facts(entry.facts, cfg, cfg.MODEL.WEIGHTS)
        name = cfg.MODEL.BACKBONE.NAME
        assert entry.net.removesuffix("_fpn") == name.removesuffix("_fpn")


def test_an_unknown_name_is_an_error():
    with pytest.raises(ConfigError, match="did you mean torchvision://resnet101"):
        read("torchvision://resnet1001")


@pytest.mark.parametrize("address, path", [
    ("torchvision://resnet18", "resnet18-f37072fd.pth"),  # where torchvision itself looks
    ("detectron2://a/R-50.pkl", "dl.fbaipublicfiles.com/detectron2/a/R-50.pkl"),
    ("https://h:80/../a%2F..//b.pth?k=../1", "h%3A80/a%2F../k%3D..%2F1/b.pth"),
])  # fmt: skip
def test_each_address_has_its_own_place_inside_the_cache(address, path, cache):
    assert cached_path(url_of(address)) == cache / path


def test_without_the_variable_the_cache_is_torch_hubs(monkeypatch):
    monkeypatch.delenv("RESNET_DET_CACHE")
    expected = Path(torch.hub.get_dir(), "checkpoints/resnet18-f37072fd.pth")
    assert cached_path(url_of("torchvision://resnet18")) == expected


def test_the_table_states_facts_instead_of_guesses():
    """MSRA's and torchvision's nets under their addresses, against a config of the other's."""
    state = {k: torch.from_numpy(v) for k, v in msra_blobs((3, 4, 6, 3), False).items()}
    name = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    facts = interpret(state, {}, name)[1]
    assert "guessed" not in facts and facts["net"] == "paper_resnet50"
    with pytest.raises(ConfigError, match="was trained with MODEL.RESNETS.STRIDE_IN_1X1 True"):
        check_facts(facts, load_config(ROOT / "configs/torchvision_faster_rcnn_R50_FPN.yaml"), name)


# ---- downloads


def served(server, tmp_path, name="it.pth"):
    net = build_net("cifar_resnet20")
    torch.save({"model": net.state_dict(), "meta": {"net": "cifar_resnet20"}}, tmp_path / name)
    server.files[f"/a/{name}"] = (tmp_path / name).read_bytes()
    return net, f"{server.url}/a/{name}"


def same(address, net):
    other = build_net("cifar_resnet20")
    load(other, address)
    return all(torch.equal(v, other.state_dict()[k]) for k, v in net.state_dict().items())


def test_an_address_is_downloaded_once(server, tmp_path):
    net, address = served(server, tmp_path)
    assert same(address, net) and same(address, net)
    assert len(server.ranges) == 1
    assert [p.name for p in cached_path(address).parent.iterdir()] == ["it.pth"]


def test_a_cut_download_is_resumed(server, tmp_path, cache):
    net, address = served(server, tmp_path)
    server.cut = 50_000
    with pytest.raises(WeightsError, match=f"{address}.*put it at {cache}.*it.pth"):
        read(address)
    assert same(address, net) and server.ranges == [None, "bytes=50000-"]


def test_an_absent_file_and_an_absent_server_are_named(server, tmp_path, cache):
    for address in (f"{server.url}/b/none.pth", "http://127.0.0.1:9/none.pth"):
        with pytest.raises(WeightsError, match=f"{address}.*(404|refused).*put it at {cache}"):
            read(address)
    with pytest.raises(ConfigError, match="names no file"):
        read(server.url)


def test_a_damaged_file_says_what_to_remove(server, tmp_path, cache):
    _, address = served(server, tmp_path)
    server.files["/a/it.pth"] = server.files["/a/it.pth"][:50_000]
    with pytest.raises(WeightsError, match=f"{cache}.*it.pth.*downloaded from {address}; remove"):
        read(address)


def test_offline_names_the_file_and_its_place(server, tmp_path, monkeypatch):
    net, address = served(server, tmp_path)
    monkeypatch.setenv("RESNET_DET_OFFLINE", "1")
    place = cached_path(address)
    with pytest.raises(WeightsError, match=f"{address}.*RESNET_DET_OFFLINE.*put it at {place}"):
        read(address)
    assert not server.ranges
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(server.files["/a/it.pth"])
    assert same(address, net)


def test_another_checksum_is_refused_downloaded_or_put_there(server, tmp_path, monkeypatch):
    net, address = served(server, tmp_path)
    digits = hashlib.sha256(server.files["/a/it.pth"]).hexdigest()[:8]
    monkeypatch.setitem(published.SCHEMES, "torchvision://", f"{server.url}/")
    entry = Published("torchvision://it.V1", "a/it.pth", "", {}, "", "", Checksum("sha256", digits))
    monkeypatch.setattr(published, "PUBLISHED", [entry])
    assert same("torchvision://it", net)
    file = cached_path(address)
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(
        WeightsError, match=f"{file}: its SHA256 .*published with .*{digits}.*remove"
    ):
        read("torchvision://it")


def test_a_process_waits_for_the_download_of_another(server, tmp_path):
    _, address = served(server, tmp_path)
    file = cached_path(address)
    file.parent.mkdir(parents=True)
    with open(f"{file}.lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)  # this process "downloads"
        other = multiprocessing.get_context("fork").Process(target=local_file, args=[address])
        other.start()
        other.join(0.5)
        assert other.is_alive()
        file.write_bytes(server.files["/a/it.pth"])
    other.join(20)
    assert other.exitcode == 0 and not server.ranges
