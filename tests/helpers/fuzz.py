#!/usr/bin/env python3
"""Open damaged and hostile checkpoints, configs, jsons and XMLs; each must be read or refused.

    python tests/reliability/fuzz.py [COUNT [SEED]]

COUNT files (default 1200), half of them drawn from a handful of forms of damage: turned, cut,
doubled and exchanged bytes and words, values of other types and sizes. The rest adds what is meant
to hurt: nesting, anchors, entities, tags and pickles that call something. Prints a line for each
file that raised anything but an error of ours with its name, took more than SECONDS, left a trace
on the disk or took memory; exit status 1 if there was one.
"""

import collections
import faulthandler
import io
import json
import os
import pickle
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml
from safetensors.torch import save as safetensors_bytes

from resnet_det.config.defaults import ConfigError, flatten, get_cfg
from resnet_det.config.loading import load_config
from resnet_det.data.detection import coco, voc
from resnet_det.records import DatasetError
from resnet_det.training import Checkpointer
from resnet_det.weights.loading import WeightsError, load

SECONDS = 20  # of processor time for one file
MEGABYTES = 500  # that all of them together may add
CANARY = "code-ran"

NASTY = (
    None, True, False, 0, -1, 2**31, 2**63, 10**400, 1e308, -0.0, float("nan"), float("inf"), "",
    " ", "nan", "1e999", "\x00", "é☃", "\ud800", "9" * 5000, "../../etc/passwd", "/dev/zero",
    "<b>", "${HOME}", "%s%s%n", "!!python/none", [], {}, [[]], [None], {"a": {}}, [1, [2, [3]]],
    ["a", 1.5, None], {"": None}, "(" * 300, "[" * 3000, "-" * 3000 + "1", "{'a':" * 99,
)  # fmt: skip
WORDS = (
    b"nan", b"-1", b"99999999999999999999", b"1e999", b"\x00", b"\xff\xfe", b"[", b"{", b"<", b"&",
    b"&a", b"*a", b"!!", b"]]>", b"<!--", b"\n", b": ", b"null", b"true", b'"', b"'", b"\xed\xa0\x80",
)  # fmt: skip


def damaged(content, rng):
    """Bytes with some turned, cut out, doubled, exchanged or replaced by awkward words."""
    spoilt = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(spoilt) + 1)
        end = min(len(spoilt), at + rng.choice((1, 1, 4, 20, 200)))
        how = rng.randrange(7)
        if how == 0:
            del spoilt[at:]
        elif how == 1:
            del spoilt[at:end]
        elif how == 2:
            spoilt[at:at] = spoilt[at:end]
        elif how == 3:
            spoilt[at:end] = rng.choice(WORDS)
        elif how == 4:
            spoilt[at:at] = rng.choice(WORDS)
        else:
            for place in range(at, min(end, at + rng.choice((1, 1, 8)))):
                spoilt[place] = rng.choice((0, 0xFF, spoilt[place] ^ 1 << rng.randrange(8)))
    return bytes(spoilt)


def exchanged(value, rng, depth=0):
    """A copy of a nested value in which one place holds something else, or is gone."""
    inside = isinstance(value, dict | list) and value
    if not inside or (depth and rng.random() < 0.2):
        return rng.choice(NASTY)
    copy = dict(value) if isinstance(value, dict) else list(value)
    key = rng.choice(list(copy)) if isinstance(copy, dict) else rng.randrange(len(copy))
    if rng.random() < 0.15:
        del copy[key]
    else:
        copy[key] = exchanged(copy[key], rng, depth + 1)
    return copy


class Call:
    """Pickles as a call of ``function`` with ``arguments``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


CALLS = (
    Call(os.system, f"touch {CANARY}"), Call(open, CANARY, "w"), Call(Path(CANARY).touch),
    Call(eval, f"open({CANARY!r}, 'w')"), Call(bytearray, 2**36), Call(torch.empty, 2**34),
    Call(collections.Counter, {"a": 1}), Call(getattr, "", "join"), Call(torch.device, "cpu"),
)  # fmt: skip


def torch_bytes(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


# ---- the files: each function yields (name, content) without end


def checkpoints(rng):
    net = torch.nn.Sequential(collections.OrderedDict(linear=torch.nn.Linear(3, 2)))
    state = net.state_dict()
    meta = {"net": "toy", "format": "BGR", "pixel_mean": [1.0, 2.0, 3.0], "classes": ["a", "b"],
            "stride_in_1x1": True, "pixel_std": [1.0, 1.0, 1.0], "config": "SEED: 3\n"}  # fmt: skip
    arrays = {k: v.numpy() for k, v in state.items()}
    blobs = {"conv1_w": arrays["linear.weight"], "pred_b": arrays["linear.bias"]}
    plain = {"model": state, "meta": meta, "iteration": 3}
    good = {
        "a.pth": [torch_bytes(plain), torch_bytes(plain, _use_new_zipfile_serialization=False)],
        "a.pkl": [pickle.dumps({"model": arrays, "__author__": "x", "meta": meta}, protocol=p)
                  for p in (2, 4, 5)] + [pickle.dumps({"blobs": blobs}, protocol=2)],
        "a.safetensors": [safetensors_bytes(state, {"meta": json.dumps(meta)})],
    }  # fmt: skip
    while True:
        name = rng.choice(list(good))
        yield name, damaged(rng.choice(good[name]), rng)
        other = exchanged(plain, rng)
        yield "a.pth", torch_bytes(other)
        yield "a.pkl", pickle.dumps(exchanged({"model": arrays, "meta": meta}, rng))
        facts = exchanged(meta, rng)
        yield "a.safetensors", safetensors_bytes(state, {"meta": json.dumps(facts)})
        hidden = exchanged(plain, rng)
        if isinstance(hidden, dict):
            hidden[rng.choice(("model", "meta", "x"))] = {"w": rng.choice(CALLS)}
        yield "a.pth", torch_bytes(hidden)
        yield "a.pkl", pickle.dumps(hidden, protocol=rng.randrange(5))
        yield "a.pkl", b"]" + b"]" * 20_000 + b"a" * 20_000 + b"."
        laughs = ["x"]  # 2^40 lists for a reader that does not see that they are shared
        for _ in range(40):
            laughs = [laughs, laughs]
        yield "a.pkl", pickle.dumps({"model": {"w": laughs}, "meta": laughs})
        yield "a.pth", torch_bytes({"model": laughs, "meta": {"classes": laughs}})


def configs(rng):
    good = {
        "MODEL": {"WEIGHTS": "a.pth", "PIXEL_MEAN": [1.0, 2.0, 3.0],
                  "BACKBONE": {"NAME": "cifar_resnet20", "FREEZE_AT": 2},
                  "ANCHOR_GENERATOR": {"SIZES": [[32, 64]], "ASPECT_RATIOS": [[0.5, 1.0]]},
                  "ROI_HEADS": {"IOU_THRESHOLDS": [0.5], "NUM_CLASSES": 20}},
        "INPUT": {"MIN_SIZE_TRAIN": [600], "CROP": {"SIZE": [32, 32]}, "FORMAT": "BGR"},
        "DATASETS": {"TRAIN": ["voc_2007_trainval"], "TEST": []},
        "SOLVER": {"BASE_LR": 0.1, "MAX_ITER": 9, "STEPS": [3, 6], "WEIGHT_DECAY_BIAS": None},
        "TEST": {"EXPECTED_RESULTS": [["bbox", "AP", 38.5, 0.2]]},
        "OUTPUT_DIR": "out", "SEED": 3, "VERSION": 2,
    }  # fmt: skip
    text = yaml.safe_dump(good).encode()
    laughs = "a0: &a0 [x, x]\n" + "".join(
        f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)
    )
    dicts = "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}\n" for i in range(1, 40)
    )
    fixed = [
        laughs, dicts, laughs + "SEED: *a39\n", laughs + "MODEL: {PIXEL_MEAN: *a39}\n",
        "a: &a [*a]\n", "a: &a {b: *a}\n", "MODEL: &a {BACKBONE: *a}\n", "_BASE_: a.yaml\n",
        "_BASE_: [a.yaml]\n", "_BASE_: /dev/zero\n", "_BASE_: .\n", "_BASE_: 3\n",
        "_BASE_: http://127.0.0.1:9/a.yaml\n", "[" * 3_000, "{a: " * 3_000, "- " * 3_000, "[" * 10**6,
        "? " * 2000, f"a: !!python/object/apply:os.system ['touch {CANARY}']\n",
        f"!!python/object/new:os.system ['touch {CANARY}']\n", "SEED: !!python/name:os.system\n",
        f"SEED: !!python/object/apply:builtins.open ['{CANARY}', w]\n", "SEED: 1\nSEED: 2\n",
        "SEED: !!binary aGVsbG8=\n", "SEED: !!set {1, 2}\n", "SEED: 2001-01-01\n", "a: b: c\n",
        "<<: 3\n", "<<: [{SEED: 1}, 3]\n", "? [1, 2]\n: 3\n", "1: {2: 3}\n", "%YAML 9.9\n---\n",
        "--- 1\n--- 2\n", "SEED: 0x" + "f" * 9000 + "\n", "SEED: " + "1" * 9000 + "\n",
        "SEED: 1" + ":59" * 2000 + "\n", "MODEL: 3\n", "MODEL:\n", "MODEL: {BACKBONE: []}\n",
        "SOLVER: {BASE_LR: .nan}\n", "SOLVER: {STEPS: [.inf]}\n", "SOLVER: {MAX_ITER: 1e99}\n",
    ]  # fmt: skip
    while True:
        for hostile in fixed:
            yield "a.yaml", damaged(text, rng)
            yield "a.yaml", hostile.encode()
            try:
                yield (
                    "a.yaml",
                    yaml.safe_dump(exchanged(good, rng)).encode("utf-8", "surrogatepass"),
                )
            except yaml.YAMLError:
                continue
            yield "a.yaml", damaged(hostile.encode()[:2000], rng)


def jsons(rng):
    good = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 30},
                   {"id": 2, "file_name": "sub/b.jpg", "height": 20, "width": 30}],
        "annotations": [{"id": 7, "image_id": 1, "category_id": 3, "bbox": [1, 2.5, 9, 9],
                         "iscrowd": 0, "area": 40.5, "segmentation": [[1, 2, 3, 4, 5, 6]]},
                        {"id": 8, "image_id": 2, "category_id": 5, "bbox": [1, 2, 3, 4],
                         "iscrowd": 1, "segmentation": {"counts": [1, 2], "size": [3, 4]}}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
    }  # fmt: skip
    text = json.dumps(good).encode()
    fixed = [
        b"[" * 100_000, b'{"a":' * 100_000, b"", b"null", b"3", b'"' + b"x" * 10**6 + b'"',
        b'{"images": ' + b"9" * 100_000 + b"}", text + text, b"\xef\xbb\xbf" + text,
        text.decode().encode("utf-16"), text.decode().encode("utf-32"),
        text.replace(b'"id": 1', b'"id": 1, "id": 2'),
        text.replace(b'"annotations"', b'"annotations": [], "annotations"'),
        text.replace(b"a.jpg", b"../../../etc/passwd"), text.replace(b"a.jpg", b"/etc/passwd"),
        text.replace(b"a.jpg", b"\\ud800"), text.replace(b"a.jpg", b"\\u0000"),
        text.replace(b'"cat"', b'"\\ud800"'), text.replace(b"30", b"1" + b"0" * 400),
        text.replace(b"2.5", b"1" + b"0" * 400), text.replace(b"40.5", b"1" + b"0" * 400),
        text.replace(b"2.5", b"NaN"), text.replace(b"2.5", b"-Infinity"), text.replace(b"7", b"1e2"),
    ]  # fmt: skip
    while True:
        for hostile in fixed:
            yield "a.json", damaged(text, rng)
            yield "a.json", hostile
            yield "a.json", json.dumps(exchanged(good, rng)).encode()
            yield "a.json", json.dumps(exchanged(exchanged(good, rng), rng)).encode()


def xmls(rng):
    good = (
        b"<annotation><folder>VOC</folder><size><width>30</width><height>20</height>"
        b"<depth>3</depth></size><object><name>dog</name><difficult>0</difficult>"
        b"<truncated>1</truncated><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>10</xmax>"
        b"<ymax>12.5</ymax></bndbox></object></annotation>"
    )
    laughs = "".join(f'<!ENTITY a{i} "&a{i - 1};&a{i - 1};&a{i - 1};">' for i in range(1, 40))
    doctypes = [
        f'<!DOCTYPE a [<!ENTITY a0 "ha">{laughs}]>', '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">',
        '<!DOCTYPE a [<!ENTITY a0 SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE a [<!ENTITY % p SYSTEM "file:///dev/zero">%p;]>', '<?xml version="9"?>',
        '<!DOCTYPE annotation>', '<?xml version="1.0" encoding="gbk"?><!DOCTYPE a>',
        '<?xml version="1.0" encoding="unicode_escape"?><!DOCTYPE a>', "<!DOCTYPE " * 50_000,
        '<?xml version="1.0" encoding="utf-7"?>', '<?xml version="1.0" encoding="zlib"?>',
        '<?xml version="1.0" encoding="rot13"?>', '<?xml version="1.0" encoding="utf-16"?>',
    ]  # fmt: skip
    fixed = [d.encode() + good.replace(b"dog", b"&a39;&a0;") for d in doctypes]
    fixed += [d.encode() + good for d in doctypes]
    fixed += [b"<a>" * 200_000, b"<a>" * 50_000 + b"</a>" * 50_000, b"", b"<annotation/>",
              b"\n" * 10**6 + b"<?xml " + b"x" * 10**6,
              b"<annotation " + b" ".join(b'a%d=""' % i for i in range(20_000)) + b"/>",
              good.decode().encode("utf-16"), good + good, b"\x00" * 999]  # fmt: skip
    values = ("nan", "-inf", "1e999", "9" * 5000, "9" * 400, "٣", "²", "1_0", "", "  ", "0x9", "-0",
              "&#0;", "&#xd800;", "&lt;", "<b>1</b>", "<!--1-->", "<![CDATA[1]]>")  # fmt: skip
    fields = (b">30<", b">20<", b">dog<", b">0<", b">1<", b">2<", b">3<", b">10<", b">12.5<")
    while True:
        for hostile in fixed:
            yield "a.xml", damaged(good, rng)
            yield "a.xml", hostile
            value = f">{rng.choice(values)}<".encode()
            yield "a.xml", good.replace(rng.choice(fields), value, 1)
            yield "a.xml", damaged(good, rng)


# ---- opening them

KEYS = flatten(get_cfg())


def open_checkpoint(path):
    net = torch.nn.Sequential(collections.OrderedDict(linear=torch.nn.Linear(3, 2)))
    load(net, path)


def resume(path):
    (path.parent / "last_checkpoint").write_text(path.name)
    Checkpointer(path.parent).load_latest()


def open_json(path):
    _, _, scan = coco.read(str(path), str(path.parent))
    for record, faults in scan:
        _check_faults(faults, path)
        if record is not None:
            record["file_name"].encode()
            assert os.path.normpath(record["file_name"]).startswith(str(path.parent))


def open_xml(path):
    for _, faults in voc.scan(str(path.parents[1]), "list"):
        _check_faults(faults, path)


def _check_faults(faults, path):
    for fault in faults:
        assert isinstance(fault, DatasetError) and str(path) in str(fault), repr(fault)
        str(fault).encode()  # it will be printed


KINDS = {
    "checkpoints": (checkpoints, open_checkpoint, WeightsError),
    "resumed": (checkpoints, resume, RuntimeError),
    "configs": (configs, load_config, ConfigError),
    "jsons": (jsons, open_json, DatasetError),
    "xmls": (xmls, open_xml, DatasetError),
}


def fault_of(read, error, path):
    """Open a file. Returns what was wrong with the reaction, or None, and whether the file was
    read."""
    begin = time.process_time()
    faulthandler.dump_traceback_later(10 * SECONDS, exit=True)  # a hang in C, too, ends here
    try:
        read(path)
    except error as refusal:
        text = str(refusal)
        named = str(path) in text or str(path.parent) in text
        if not named and text.split(":")[0] not in KEYS:  # or a key whose value is refused
            return f"does not name the file: {text[:200]}"
        try:
            text.encode()
        except UnicodeEncodeError:
            return "has a message that cannot be printed"
        if len(text) > 20_000:
            return f"has a message of {len(text)} letters"
    except BaseException as fault:  # noqa: BLE001 (that is what is looked for)
        return f"{type(fault).__name__}: {str(fault)[:200]!a}"
    finally:
        faulthandler.cancel_dump_traceback_later()
    seconds = time.process_time() - begin
    return f"took {seconds:.1f} s" if seconds > SECONDS else None


def run(count, seed, kinds=KINDS):
    """Open ``count`` files; yields (kind, number, what was wrong, content) and last the totals."""
    folder = Path(tempfile.mkdtemp())
    os.chdir(folder)
    place = folder / "data" / "Annotations"
    (folder / "data" / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "data" / "ImageSets" / "Main" / "list.txt").write_text("a\n")
    place.mkdir()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for kind, (files, read, error) in kinds.items():
        rng = random.Random(f"{seed} {kind}")
        for number, (name, content) in enumerate(files(rng)):
            if number == count // len(kinds):
                break
            if kind == "resumed" and not name.endswith(".pth"):
                continue
            path = place / name
            path.write_bytes(content)
            fault = fault_of(read, error, path)
            if Path(CANARY).exists() or (place / CANARY).exists():
                fault = "ran code"
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
            if grown > MEGABYTES:
                fault = f"{fault or ''} memory grew by {grown} MB"
                before += grown * 1024
            if fault:
                yield f"{kind} {number}: {fault}", path.suffix, content


def main():
    count, seed = [*map(int, sys.argv[1:]), *(1200, 1)[len(sys.argv) - 1 :]]
    faults = 0
    for line, _, content in run(count, seed):
        faults += 1
        print(f"{line}   {content[:120]!r}", flush=True)
    print(f"{count} files, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
