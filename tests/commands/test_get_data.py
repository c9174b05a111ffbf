"""get_data.py, against a server on this machine."""

import io
import tarfile
from dataclasses import replace

from resnet_det import download
from resnet_det.commands import get_data
from resnet_det.data import DRAWN


def test_miniature_is_drawn_after_the_photographs_that_it_needs_are_downloaded(
    server, tmp_path, monkeypatch
):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    server.files["/cifar.tar"] = buffer.getvalue()
    archive = download.Archive(f"{server.url}/cifar.tar", ("cifar-10-batches-py",))
    monkeypatch.setitem(download.SETS, "cifar10", (archive,))

    def draw(root, workers):
        (tmp_path / "cifar-10-batches-py/data_batch_1").read_bytes()  # the photographs
        (tmp_path / "miniature").mkdir()
        (tmp_path / "miniature/about.json").write_text('{"version": 9}')

    monkeypatch.setitem(DRAWN, "miniature", replace(DRAWN["miniature"], version=9, draw=draw))
    assert get_data.main(["miniature", "cifar10", "--root", str(tmp_path)]) == 0
