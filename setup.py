"""What pyproject.toml cannot say: configs/ is packaged, and a stale build/ is not."""

from tempfile import TemporaryDirectory

from setuptools import find_packages, setup

build = TemporaryDirectory()
setup(
    packages=[*find_packages(include=["resnet_det", "resnet_det.*"]), "resnet_det.configs"],
    package_dir={"resnet_det.configs": "configs"},
    options={"build": {"build_base": build.name}},
)
