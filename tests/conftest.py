"""Fixtures, the settings of hypothesis, and the reasons for skipping."""

import http.server
import importlib.util
import os
import tempfile
import threading
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests start processes beside this one

import hypothesis
import pytest
import torch
from voc_folder import VocFolder

from resnet_det.data.synthetic import scenes


def pytest_configure(config):
    if "RESNET_DET_CACHE" not in os.environ:  # nothing of a test is left in the user's own
        cache = tempfile.TemporaryDirectory(prefix="resnet_det-cache-")
        os.environ["RESNET_DET_CACHE"] = cache.name
        config.add_cleanup(cache.cleanup)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    # The same examples every time, whatever the machine's load.
    hypothesis.settings.register_profile(
        "suite", derandomize=True, max_examples=50, deadline=None, database=None
    )
    hypothesis.settings.load_profile("suite")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config, items):
    reasons = {}
    if not config.getoption("--slow"):
        reasons["slow"] = "takes minutes: pytest --slow runs it"
    if importlib.util.find_spec("detectron2") is None:
        reasons["detectron2"] = "Detectron2 is not installed"
    if not torch.cuda.is_available():
        reasons["gpu"] = "no CUDA device"
    if "RESNET_DET_REAL_DATA" not in os.environ:
        reasons["real_data"] = "RESNET_DET_REAL_DATA names no folder of real photographs"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):  # keywords hold the names of folders too
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def settings_of_pytorch_stay():
    """They hold for the process: one that a test leaves behind decides what later tests see."""

    def settings():
        return {
            "torch.backends.cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
            "torch.backends.cudnn.benchmark": torch.backends.cudnn.benchmark,
            "torch.get_float32_matmul_precision": torch.get_float32_matmul_precision(),
            "torch.are_deterministic_algorithms_enabled": torch.are_deterministic_algorithms_enabled(),
            "torch.get_default_dtype": torch.get_default_dtype(),
            "torch.get_num_threads": torch.get_num_threads(),
            "torch.is_grad_enabled": torch.is_grad_enabled(),
        }

    before = settings()
    yield
    assert settings() == before, "the test leaves a setting of PyTorch changed"


@pytest.fixture(scope="session")
def real_data():
    """Folder that holds ``coco/``, ``VOC2007/`` and ``imagenet_samples/`` (mark the test
    real_data)."""
    return Path(os.environ["RESNET_DET_REAL_DATA"])


@pytest.fixture(scope="session")
def few_scenes(tmp_path_factory):
    """Folder of datasets that holds a handful of tiny scenes and crops, for runs of seconds."""
    root = tmp_path_factory.mktemp("datasets")
    scenes.write_scenes(root, trainval=6, test=2, train_crops=16, val_crops=8, size=(48, 64))
    return root


@pytest.fixture
def voc_folder(tmp_path):
    return VocFolder(tmp_path)


@pytest.fixture
def server():
    """A server on this machine that can cut, resume and lie; it serves ``server.files``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        files, ranges, cut, no_range = {}, [], None, False

        def do_GET(self):
            content = self.files.get(self.path)
            if content is None:
                return self.send_error(404)
            begin = 0
            asked = None if Handler.no_range else self.headers.get("Range")
            Handler.ranges.append(self.headers.get("Range"))
            if asked:
                begin = int(asked.removeprefix("bytes=").rstrip("-"))
                if begin >= len(content):
                    return self.send_error(416)
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            end, Handler.cut = Handler.cut, None
            self.wfile.write(content[begin:end])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        Handler.url = f"http://127.0.0.1:{server.server_port}"
        yield Handler
        server.shutdown()
