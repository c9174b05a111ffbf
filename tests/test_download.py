"""Fetching against a server on this machine that can cut, resume and lie."""

import hashlib
import http.client
import io
import tarfile
import zipfile

import pytest

from resnet_det.data import DatasetError
from resnet_det.download import SETS, Archive, fetch, get


def tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


VOC = tar({
    "VOCdevkit/VOC2007/JPEGImages/000001.jpg": b"x" * 300_000,
    "VOCdevkit/VOC2007/Annotations/000001.xml": b"<annotation/>",
    "VOCdevkit/VOC2007/ImageSets/Main/test.txt": b"000001\n",
})  # fmt: skip
GIVES = ("VOC2007/ImageSets/Main/test.txt",)


def archive(server, content=VOC, name="voc.tar", **others):
    server.files[f"/{name}"] = content
    others = {"gives": GIVES, "strip": "VOCdevkit/"} | others
    others.setdefault("md5", hashlib.md5(content).hexdigest())
    return Archive(f"{server.url}/{name}", **others)


def test_layout_is_the_datasets(server, tmp_path):
    wanted = archive(server)
    assert get(wanted, tmp_path) is True
    assert (tmp_path / "VOC2007/JPEGImages/000001.jpg").stat().st_size == 300_000
    assert (tmp_path / GIVES[0]).read_text() == "000001\n"
    assert [p.name for p in tmp_path.iterdir()] == ["VOC2007"]  # nothing is left over
    asked = len(server.ranges)
    assert get(wanted, tmp_path) is False and len(server.ranges) == asked


def test_a_second_archive_joins_the_first(server, tmp_path):
    get(archive(server), tmp_path)
    more = tar({"VOCdevkit/VOC2007/ImageSets/Main/val.txt": b"000002\n",
                "VOCdevkit/VOC2007/JPEGImages/000002.jpg": b"y"})  # fmt: skip
    get(archive(server, more, "more.tar", gives=("VOC2007/ImageSets/Main/val.txt",)), tmp_path)
    names = {p.name for p in (tmp_path / "VOC2007/JPEGImages").iterdir()}
    assert names == {"000001.jpg", "000002.jpg"}


def test_a_cut_download_goes_on_where_it_stopped(server, tmp_path):
    wanted = archive(server)
    server.cut = 100_000
    with pytest.raises(DatasetError, match="put it at .*voc.tar"):
        get(wanted, tmp_path)
    assert not (tmp_path / "VOC2007").exists()
    assert (tmp_path / "voc.tar.part").stat().st_size == 100_000
    get(wanted, tmp_path)
    assert server.ranges == [None, "bytes=100000-"] and (tmp_path / GIVES[0]).exists()


def test_a_server_without_ranges_sends_it_all_again(server, tmp_path):
    server.no_range, server.files["/a"] = True, VOC
    (tmp_path / "a.part").write_bytes(b"wrong")
    fetch(f"{server.url}/a", str(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == VOC


def test_a_whole_part_is_taken(server, tmp_path):
    server.files["/a"] = VOC
    (tmp_path / "a.part").write_bytes(VOC)
    fetch(f"{server.url}/a", str(tmp_path / "a"))
    assert (tmp_path / "a").read_bytes() == VOC


def test_what_was_put_there_by_hand_is_used(tmp_path):
    (tmp_path / "voc.tar").write_bytes(VOC)
    get(Archive("http://127.0.0.1:9/voc.tar", GIVES, strip="VOCdevkit/"), tmp_path)
    assert (tmp_path / GIVES[0]).exists() and not (tmp_path / "voc.tar").exists()


def test_offline_it_says_what_to_fetch_and_where_to_put_it(tmp_path):
    with pytest.raises(DatasetError, match="127.0.0.1:9/voc.tar.*put it at .*voc.tar"):
        get(Archive("http://127.0.0.1:9/voc.tar", GIVES), tmp_path)


@pytest.mark.parametrize(
    "content, words",
    [
        (VOC[:-200_000], "cannot be unpacked"),
        (tar({"../../outside.txt": b"x"}), "cannot be unpacked"),
        (tar({"VOCdevkit/VOC2007/readme.txt": b"x"}), "does not hold"),
        (b"no archive", "cannot be unpacked"),
    ],
    ids=["cut", "leaves the folder", "lacks the list", "no tar"],
)
def test_a_bad_archive_leaves_no_layout(server, tmp_path, content, words):
    root = tmp_path / "a/b"
    with pytest.raises(DatasetError, match=words):
        get(archive(server, content), root)
    assert [p.name for p in root.iterdir()] == ["voc.tar"]
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_damaged_block_of_a_zip_names_the_file(server, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("val.json", "0123456789" * 1000)
    content = bytearray(buffer.getvalue())
    content[40:60] = b"\xff" * 20  # of the deflated data: zlib itself stops
    wanted = archive(server, bytes(content), "val.zip", gives=("val.json",), strip="", md5="")
    with pytest.raises(DatasetError, match="val.zip: cannot be unpacked: Error -3"):
        get(wanted, tmp_path)


def test_an_answer_that_is_no_http_names_the_address(monkeypatch, tmp_path):
    def broken(*_, **__):
        raise http.client.IncompleteRead(b"", 9)

    monkeypatch.setattr("urllib.request.urlopen", broken)
    with pytest.raises(DatasetError, match="http://there/a.*put it at"):
        fetch("http://there/a", str(tmp_path / "a"))


def test_another_checksum_is_refused(server, tmp_path):
    with pytest.raises(DatasetError, match="MD5"):
        get(archive(server, md5="0" * 32), tmp_path)
    assert not (tmp_path / "VOC2007").exists()


def test_a_folder_appears_whole(server, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("val2014/1.jpg", b"x")
    wanted = archive(server, buffer.getvalue(), "val2014.zip", gives=("coco/val2014",), strip="",
                     into="coco", md5="")  # fmt: skip
    get(wanted, tmp_path)
    assert (tmp_path / "coco/val2014/1.jpg").read_bytes() == b"x"


def test_the_published_checksums_are_torchvisions():
    from torchvision.datasets import CIFAR10, CIFAR100
    from torchvision.datasets.voc import DATASET_YEAR_DICT as VOC_YEARS

    def name_of(url):  # VOC has moved to another server
        return url.rpartition("/")[2]

    years = [VOC_YEARS[year] for year in ("2007", "2007-test", "2012")]
    expected = {(name_of(year["url"]), year["md5"]) for year in years}
    assert {(name_of(archive.url), archive.md5) for archive in SETS["voc"]} == expected
    for name, theirs in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        assert [(a.url, a.md5) for a in SETS[name]] == [(theirs.url, theirs.tgz_md5)]
