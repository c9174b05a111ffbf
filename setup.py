from setuptools import find_packages, setup

setup(
    name="resnet_det",
    version="0.1.0",
    description="Residual networks exactly as in the paper, and detectors on them",
    packages=find_packages(include=["resnet_det", "resnet_det.*"]),
    package_data={"resnet_det.evaluation": ["*.j2"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "pycocotools>=2.0.7",
        "fvcore",
        "jinja2>=3",
        "matplotlib>=3.7",
        "numpy",
        "Pillow>=10.1",
        "PyYAML",
        "safetensors>=0.4",
        "tabulate>=0.9",
        "tensorboard",
        "tqdm",
    ],
    extras_require={
        "shards": ["webdataset>=1.0"],
        "test": ["hypothesis", "pytest", "ruff", "timm", "webdataset>=1.0"],
    },
)
