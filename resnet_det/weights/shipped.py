"""The weights and sample pictures in this package, which the quickstart made.

``MODEL.WEIGHTS`` takes these addresses, as every tool does that reads a weight file:

    resnet_det://quickstart             the detector of configs/quickstart.yaml
    resnet_det://quickstart_classifier  the classifier that it started from
"""

from pathlib import Path

from ..hints import did_you_mean
from .pickles import WeightsError

SCHEME = "resnet_det://"
FOLDER = Path(__file__).parents[1] / "models"


def pictures() -> list[str]:
    """Paths of the sample pictures: scenes of the quickstart's test set."""
    return sorted(str(path) for path in FOLDER.glob("*.jpg"))


def local_file(address: str) -> Path:
    """The file that ``resnet_det://NAME`` stands for.

    Raises:
        WeightsError: the package has no weights of this name.
    """
    name = address.removeprefix(SCHEME)
    files = {path.stem: path for path in sorted(FOLDER.glob("*.safetensors"))}
    if name not in files:
        raise WeightsError(
            f"{address}: this package holds no such weights"
            f"{did_you_mean(name, list(files), list_all=True)}"
        )
    return files[name]
