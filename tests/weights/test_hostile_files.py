"""Damaged and hostile files of weights are refused in one sentence."""

import json
import pickle
import struct
import warnings
import zipfile

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from effv2_jax.errors import UserError
from effv2_jax.weights import read_weights
from effv2_jax.weights.bundle import (
    flatten_arrays,
    to_metadata,
)


class Code:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def hostile_files(folder, written):
    """name -> a part of the error message."""
    good = written["effv2"].read_bytes()
    (folder / "cut.safetensors").write_bytes(good[: len(good) // 2])
    (folder / "huge_header.safetensors").write_bytes(struct.pack("<Q", 2**60) + b"{" * 100)
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}}).encode()
    (folder / "huge_array.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    (folder / "cut.weights.h5").write_bytes(written["keras"].read_bytes()[:5_000_000])
    (folder / "renamed.weights.h5").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "packed.tgz").write_bytes(b"\x1f\x8b" + bytes(100))
    with zipfile.ZipFile(folder / "bomb.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(200_000_000))
    with h5py.File(folder / "huge.weights.h5", "w") as file:
        group = file.create_group("layers/conv2d/vars")
        group.attrs["name"] = "stem_conv"
        group.create_dataset("0", shape=(2**30, 2**30), dtype="f4", chunks=(1024, 1024))
    (folder / "secret.bin").write_bytes(bytes(4000))
    for name in ("external", "linked", "strings"):
        with h5py.File(folder / f"{name}.weights.h5", "w") as file:
            group = file.create_group("layers/conv2d/vars")
            group.attrs["name"] = "stem_conv"
            if name == "external":  # another file's bytes as values
                group.create_dataset("0", (3, 3, 3, 32), "f4", external=[(str(folder / "secret.bin"), 0, 3456)])
            elif name == "linked":
                group["0"] = h5py.ExternalLink(str(folder / "huge.weights.h5"), "layers/conv2d/vars/0")
            else:
                group.create_dataset("0", (3, 3, 3, 32), "S3000000")
    (folder / "cut.index").write_bytes(b"nothing")
    return {
        "cut.safetensors": "damaged or truncated",
        "huge_header.safetensors": "damaged or truncated",
        "huge_array.safetensors": "damaged or truncated",
        "external.weights.h5": "is stored in another file",
        "linked.weights.h5": "is stored in another file",
        "strings.weights.h5": "is |S3000000, not floating-point",
        "cut.weights.h5": "damaged or truncated",
        "renamed.weights.h5": "is not a file of weights (unknown content)",
        "empty.safetensors": "is not a file of weights (empty)",
        "packed.tgz": "unpack it first",
        "bomb.keras": "would unpack to 200,000,000 bytes",
        "huge.weights.h5": "claims 1 arrays of 1,152,921,504,606,846,976 values",
        "cut.index": "damaged or truncated",
        "absent.pth": "cannot be read: No such file",
    }


def test_damaged_and_hostile_files_are_refused_in_one_sentence(effv2, written, tmp_path):
    for name, message in hostile_files(tmp_path, written).items():
        code, _, err = effv2("convert", tmp_path / name, tmp_path / "x.safetensors")
        assert code == 2 and err.startswith("effv2: error: ") and message in err, (name, err)
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": float("inf")}, "lacks a field or holds an invalid one"),
        ({"num_classes": -5}, "numbers that are out of range"),
        ({"architecture.blocks": []}, "numbers that are out of range"),
        ({"architecture.blocks.0.kind": "foo"}, "its metadata holds 'foo' instead of one of mbconv, fused"),
        ({"architecture.blocks.0.stride": 0}, "its metadata holds '0' instead of one of 1, 2"),
        ({"architecture.blocks.0.se_ratio": float("nan")}, "numbers that are out of range"),
        ({"architecture.blocks.0.output_filters": 2**40}, "numbers that are out of range"),
        ({"preprocess.image_size": 0}, "numbers that are out of range"),
        ({"preprocess.image_size": 10**6}, "numbers that are out of range"),
        ({"preprocess.crop": "none"}, "its metadata holds 'none' instead of one of"),
        ({"class_names": ["\x1b[2J"] * 10}, "control characters"),
        ({"class_names": ["a"]}, "its metadata names 1 of 10 classes"),
        ({"format": 99}, "its format version is 99"),
    ],
)
def test_invalid_metadata_is_refused(effv2, b0, tmp_path, changes, message):
    values = json.loads(to_metadata(b0))
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = values
        for parent in parents:
            place = place[int(parent) if parent.isdigit() else parent]
        place[last] = value
    arrays = {path: np.asarray(value) for path, value in flatten_arrays(b0.variables).items()}
    save_file(arrays, tmp_path / "w.safetensors", {"effv2_jax": json.dumps(values)})
    code, _, err = effv2("convert", tmp_path / "w.safetensors", tmp_path / "x.safetensors")
    assert code == 2 and message in err


def test_any_damage_is_reported_in_one_sentence(effv2, tmp_path):
    """Small files with random bytes changed are read or refused, never with a traceback."""
    torch = pytest.importorskip("torch", reason="needs PyTorch: make peers")
    arrays = {"conv_stem.weight": torch.zeros(2, 2), "bn1.weight": torch.zeros(2)}
    torch.save(arrays, tmp_path / "w.pth")
    torch.save(arrays, tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file({name: value.numpy() for name, value in arrays.items()}, tmp_path / "w.safetensors")
    with h5py.File(tmp_path / "w.weights.h5", "w") as file:
        group = file.create_group("layers/conv2d/vars")
        group.attrs["name"] = "stem_conv"
        group["0"] = np.zeros((2, 2), np.float32)
    rng = np.random.default_rng(0)
    for name in ("w.pth", "legacy.pth", "w.safetensors", "w.weights.h5"):
        data = (tmp_path / name).read_bytes()
        for _ in range(60):
            changed = bytearray(data)
            for place in rng.integers(len(data), size=rng.integers(1, 4)):
                changed[place] ^= int(rng.integers(1, 256))
            (tmp_path / name).write_bytes(changed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                code, _, err = effv2("convert", tmp_path / name, tmp_path / "x.safetensors")
            assert code == 2 and err.startswith("effv2: error: "), (name, err)


def test_records_that_overlap_are_refused(tmp_path, written):
    """A small file whose directory lists the same bytes many times would fill the memory."""
    pytest.importorskip("torch", reason="needs PyTorch: make peers")
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("w/data.pkl", b"\x80\x02}.")
        archive.writestr("w/data/0", bytes(100_000))
        first = archive.filelist[1]
        for number in range(1, 50):
            member = zipfile.ZipInfo(f"w/data/{number}")
            member.header_offset, member.file_size, member.compress_size = first.header_offset, 100_000, 100_000
            member.CRC = first.CRC
            archive.filelist.append(member)
    with pytest.raises(UserError, match="its records are larger than the file"):
        read_weights(tmp_path / "w.pth")


def test_a_pickle_runs_no_code(effv2, tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch: make peers")

    torch.save({"w": Code(tmp_path / "pwned")}, tmp_path / "evil.pth")
    (tmp_path / "legacy.pth").write_bytes(pickle.dumps({"w": Code(tmp_path / "pwned")}, protocol=2))
    with (
        zipfile.ZipFile(tmp_path / "evil.pth") as source,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for item in source.infolist():
            bomb.writestr(item.filename, source.read(item) + bytes(10_000_000))
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    for name, message in {
        "evil.pth": "so it was not loaded",
        "legacy.pth": "so it was not loaded",
        "bomb.pth": "is compressed",
        "tensor.pth": "contains a Tensor instead of a dictionary of tensors",
    }.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code, _, err = effv2("convert", tmp_path / name, tmp_path / "x.safetensors")
        assert code == 2 and message in err, (name, err)
    assert not (tmp_path / "pwned").exists()
