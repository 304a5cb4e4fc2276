"""The demo from images to report, and what images that cannot be used get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("rich", reason="needs the extra 'demo'")

from numpy.typing import NDArray
from PIL import Image

import mcelbo
from mcelbo import cli
from mcelbo.demo import commands, report, training
from mcelbo.demo.data import UsageError, load
from mcelbo.demo.model import Autoencoder

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (12, 5, 6), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (12, 5, 6, 3), dtype=np.uint8)


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at few samples of few images."""
    monkeypatch.setattr(commands, "STUDIED", 8)
    monkeypatch.setattr(commands, "STUDIED_WITH", (1, 4))
    monkeypatch.setattr(commands, "SCORED", 20)
    monkeypatch.setattr(report, "SPREAD_SAMPLES", 30)


def saved(path: Path, **arrays: NDArray[np.generic]) -> Path:
    np.savez(path, **arrays)
    return path


def folder(path: Path, pictures: NDArray[np.uint8]) -> Path:
    path.mkdir(parents=True)
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(path / f"{index}.png")
    return path


def run_demo(path: Path, *more: str) -> bytes:
    assert cli.main(["demo", "--epochs", "1", "--latent", "2", "--output", str(path), *more]) == 0
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.size == tuple(report.DOTS_PER_INCH * inches for inches in report.INCHES)
    return path.read_bytes()


@pytest.mark.usefixtures("_short")
def test_the_digits_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run_demo(tmp_path / "report.png")
    printed = capsys.readouterr().out
    assert "handwritten digits: 1,438 images of 8 x 8 to train on, 359 to test" in printed.replace("\n", " ")
    for column in ("bound, nats", "squared error", "KL, nats"):
        assert column in printed
    rows = [line for line in printed.splitlines() if "±" in line]
    assert [line.split()[1] for line in rows] == ["train"] * 3 + ["test"] * 3
    assert first == run_demo(tmp_path / "report.png")
    assert printed == capsys.readouterr().out


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize("images", [GREY, COLOUR])
def test_own_images_end_to_end(images: NDArray[np.uint8], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_demo(tmp_path / "a.png", "--data", str(saved(tmp_path / "mine.npz", images=images)))
    run_demo(tmp_path / "b.png", "--data", str(folder(tmp_path / "pictures", images)))
    printed = capsys.readouterr().out
    assert "mine: 10 images of 5 x 6" in printed
    assert "pictures: 10 images of 5 x 6" in printed


@pytest.mark.usefixtures("_short")
def test_a_study_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "--epochs", "1", "--counts", "2,4"]) == 0
    printed = capsys.readouterr().out
    assert "Of the loss of 8 test images" in printed
    assert [line.split()[0] for line in printed.splitlines() if line.endswith("%")] == ["2", "4"]
    assert "relative error of 1%" in printed


def test_training_raises_the_bound_and_leaves_torch_as_it_was() -> None:
    images, state, threads = load(None, 0).train[:200], torch.get_rng_state(), torch.get_num_threads()
    model = Autoencoder(64, 2, seed=0)
    losses: list[float] = []
    training.train(model, images, epochs=5, num_samples=2, seed=0, done=losses.append)
    assert len(losses) == 5
    assert losses[-1] < losses[0]
    assert torch.equal(state, torch.get_rng_state())
    assert threads == torch.get_num_threads()


def test_scores_are_means_and_their_errors() -> None:
    images = load(None, 0).test[:30]
    model = Autoencoder(64, 3, seed=0)
    (scores,) = training.evaluate(model, images, (50,), seed=5)
    with torch.no_grad():
        mu, logvar = model.posterior(images)
        z = mu[:, None] + (logvar / 2).exp()[:, None] * mcelbo.noise(5, 30, 50, 3)
        errors = (images.flatten(1)[:, None] - model.decoder(z)).square().sum(2).double()  # (B, n)
        sigma = model.log_sigma.exp().double()
        density = -errors / (2 * sigma**2) - 32 * torch.log(2 * torch.pi * sigma**2)
        normal = torch.distributions.Normal
        kl = torch.distributions.kl_divergence(normal(mu, (logvar / 2).exp()), normal(0.0, 1.0)).sum(1)
        bound = density.mean(1) - kl
    # float32 throughout: a few hundred roundings at most.
    near = {"rel": 1e-4}
    assert scores.bound == pytest.approx(float(bound.mean()), **near)
    assert scores.bound_error == pytest.approx(float((density.var(1) / 50).sum().sqrt() / 30), **near)
    assert scores.squared_error == pytest.approx(float(errors.mean()), **near)
    assert scores.squared_error_error == pytest.approx(float((errors.var(1) / 50).sum().sqrt() / 30), **near)
    assert scores.kl == pytest.approx(float(kl.mean()), **near)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, GREY / 255),
        (GREY[..., None], GREY / 255),
        (COLOUR, COLOUR / 255),
        (GREY.astype(np.int64), GREY / 255),
        (GREY.astype(np.uint16) * 257, GREY / 255),
        (GREY > 99, GREY > 99),
        (GREY / 255, GREY / 255),
    ],
)
def test_images_come_from_0_to_1(array: NDArray[np.generic], expected: NDArray[np.generic], tmp_path: Path) -> None:
    images = load(saved(tmp_path / "a.npz", labels=np.arange(12), images=array), 0)
    assert images.name == "a"
    assert (len(images.train), len(images.test)) == (10, 2)
    assert images.train.dtype == torch.float32

    def in_order(stack: NDArray[np.generic]) -> list[bytes]:
        return sorted(image.tobytes() for image in stack.astype(np.float32))

    assert in_order(torch.cat([images.train, images.test]).numpy()) == in_order(expected)


def test_the_seed_decides_the_order() -> None:
    first, again, other = (load(None, seed).train for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_folder_with_one_colour_image_is_colour(tmp_path: Path) -> None:
    path = folder(tmp_path / "all" / "grey", GREY)
    folder(tmp_path / "all" / "colour", COLOUR[:1])
    (path / "notes.txt").write_text("not an image")
    images = load(tmp_path / "all", 0)
    assert len(images.train) + len(images.test) == 13
    assert images.train.shape[1:] == (5, 6, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (GREY[:9], "holds 9 images: expected at least 10"),
        (GREY.astype(np.float32), r"holds float32 values from .* expected 0 to 1, all finite"),
        (np.where(GREY > 99, np.nan, 0.5), "values from nan to nan"),
        (GREY.astype(np.int16) - 200, "holds int16 values from .* expected 0 to 255"),
        (np.concatenate([COLOUR, COLOUR], axis=3), "expected 1 or 3 colours"),
        (GREY.reshape(12, 30), r"holds no images, but \{'images': \(12, 30\)\}"),
        (GREY.astype(complex), "holds no images"),
        (np.array([{}]), "cannot be read: Object arrays"),
    ],
)
def test_unusable_arrays_are_refused(array: NDArray[np.generic], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load(saved(tmp_path / "a.npz", images=array), 0)


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("not an archive")
    (tmp_path / "a.csv").write_text("1, 2")
    for name, message in (("a.npz", "cannot be read"), ("a.csv", "expected an existing .npz file or folder")):
        with pytest.raises(UsageError, match=message):
            load(tmp_path / name, 0)


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds 0 images"):
        load(tmp_path, 0)
    path = folder(tmp_path / "b", GREY)
    Image.fromarray(GREY[0, :4]).save(path / "99.png")
    with pytest.raises(UsageError, match=r"99\.png is 6 x 4 and .*0\.png 6 x 5 pixels: expected one size"):
        load(path, 0)
    Image.fromarray(GREY[0].astype(np.uint16)).save(path / "99.png")
    with pytest.raises(UsageError, match=r"99\.png has pixels of mode I"):
        load(path, 0)
    (path / "99.png").write_text("not an image")
    with pytest.raises(UsageError, match="cannot be read"):
        load(path, 0)


def test_large_images_get_fewer_steps() -> None:
    assert training.default_epochs(torch.zeros(640, 8, 8)) == training.STEPS // 10
    assert training.default_epochs(torch.zeros(640, 64, 64)) == training.STEPS // 40
    assert training.default_epochs(torch.zeros(10**6, 1, 1)) == 1
