from setuptools import find_packages, setup

setup(
    name="resnet_det",
    version="0.1.0",
    description="Residual networks exactly as in the paper, and detectors on them",
    packages=find_packages(include=["resnet_det", "resnet_det.*"]),
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "pycocotools>=2.0.7",
        "fvcore",
        "matplotlib",
        "numpy",
        "Pillow>=10.1",
        "safetensors>=0.4",
        "tensorboard",
        "tqdm",
    ],
    extras_require={
        "shards": ["webdataset>=1.0"],
        "test": ["hypothesis", "pytest", "ruff", "timm", "webdataset>=1.0"],
    },
)
