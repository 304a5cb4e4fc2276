"""Images to train on: scikit-learn's handwritten digits, or the user's own from an .npz file or a folder."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEAST = 10  # images, of which one part in TEST_SHARE is kept for the test
TEST_SHARE = 5


class UsageError(ValueError):
    """What the user gave cannot be used; the message says why."""


class Images(NamedTuple):
    """Images (N, H, W) or (N, H, W, C), float32 from 0 to 1, in two sets."""

    name: str
    train: Tensor
    test: Tensor


def load(source: Path | None, seed: int) -> Images:
    """Return the images of `source` (None: the digits), shuffled by `seed` into a training and a test set.

    Raises UsageError, which says what is wrong with the source, if anything is.
    """
    try:
        pixels = _digits() if source is None else _folder(source) if source.is_dir() else _archive(source)
    except UsageError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile) as problem:
        raise UsageError(f"--data {source} cannot be read: {problem}") from problem
    if len(pixels) < LEAST:
        raise UsageError(f"--data {source} holds {len(pixels)} images: expected at least {LEAST}")
    order = np.random.default_rng(seed).permutation(len(pixels))
    images, held_back = torch.from_numpy(pixels[order]), len(pixels) // TEST_SHARE
    name = "handwritten digits" if source is None else source.resolve().stem
    return Images(name, images[held_back:], images[:held_back])


def _digits() -> NDArray[np.float32]:
    from sklearn.datasets import load_digits

    grey = np.asarray(load_digits().images, np.float32)
    return grey / np.float32(16)


def _archive(path: Path) -> NDArray[np.float32]:
    """Read the first array of an .npz file that is shaped like images."""
    if path.suffix.lower() != ".npz" or not path.exists():
        raise UsageError(f"--data is {path}: expected an existing .npz file or folder of images")
    shapes = {}
    with np.load(path) as archive:
        for key in archive.files:
            array = archive[key]
            if array.ndim in (3, 4) and array.dtype.kind in "buif":
                return _unit(array, f"{path}: array {key!r}")
            shapes[key] = array.shape
    raise UsageError(f"--data {path} holds no images, but {shapes}: expected an array (N, H, W) or (N, H, W, C)")


def _unit(array: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Bring images to float32 from 0 to 1, or say that their values are none."""
    if array.ndim == 4 and array.shape[3] not in (1, 3):
        raise UsageError(f"{name} has shape {array.shape}: expected 1 or 3 colours in the last axis")
    array = array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array
    whole = array.dtype.kind in "ui"
    scale = 65535 if array.dtype == np.uint16 else 255 if whole else 1
    unit = array.astype(np.float32) / np.float32(scale)
    if unit.size and not (unit.min() >= 0 and unit.max() <= 1):
        raise UsageError(
            f"{name} holds {array.dtype} values from {array.min()} to {array.max()}: expected 0 to {scale}, all finite"
        )
    return unit


def _folder(path: Path) -> NDArray[np.float32]:
    """Read every image file below a folder; all become colour images if one of them is."""
    from PIL import Image

    known = Image.registered_extensions()
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in known)
    pictures = []
    for file in files:
        with Image.open(file) as opened:
            if opened.mode[0] in "IF":
                raise UsageError(f"{file} has pixels of mode {opened.mode}: expected 8 bits per colour")
            grey = opened.mode in ("1", "L", "LA")
            pictures.append(opened.convert("L" if grey else "RGB"))
    for file, picture in zip(files, pictures, strict=True):
        if picture.size != pictures[0].size:
            raise UsageError(
                f"{file} is {picture.width} x {picture.height} and {files[0]} {pictures[0].width} x "
                f"{pictures[0].height} pixels: expected one size, so resize or crop them first"
            )
    mode = "RGB" if any(picture.mode == "RGB" for picture in pictures) else "L"
    return np.array([np.asarray(picture.convert(mode)) for picture in pictures]).astype(np.float32) / np.float32(255)
