from PIL import Image, features

from resnet_det.data.image_files import EXTENSIONS


def test_the_suffixes_are_pillows():
    """Those of all formats of photographs that Pillow reads, in their usual spellings."""
    Image.init()
    known = Image.registered_extensions()
    formats = {"BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP"}
    formats |= {"AVIF"} if features.check("avif") else set()
    assert {known.get(suffix) for suffix in EXTENSIONS} - {None} == formats
    assert {suffix for suffix in EXTENSIONS if suffix not in known} <= {".avif"}
    of_cameras = {suffix for suffix, of in known.items() if of in ("JPEG", "MPO", "TIFF")}
    assert of_cameras <= set(EXTENSIONS)
