"""The README's evidence: that it runs, and that its errors are standard errors."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("sklearn", reason="needs the extra 'demo'")

import mcelbo
from benchmarks import evidence
from mcelbo.demo.model import Autoencoder


@pytest.fixture
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SINGLE_IMAGES": 2,
        "ESTIMATES": 4,
        "BATCH": 6,
        "BATCHES": 2,
        "MANY": 50,
        "COUNTS": (1, 4),
    }.items():
        monkeypatch.setattr(evidence, name, value)


def test_patches_are_grey_images_of_two_photographs() -> None:
    train, test = evidence.patches()
    assert len(test) == evidence.TEST
    # 427 x 640 pixels: 29 x 44 places of a patch of 28, 14 pixels apart.
    assert len(train) + len(test) == 2 * 29 * 44
    assert train.shape[1:] == (28, 28)
    assert 0 <= train.min() < 0.1 < 0.9 < train.max() <= 1


def test_measured_errors_are_the_standard_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "ESTIMATES", 2000)
    images = evidence.patches()[1][:1]
    model = Autoencoder(784, 1, seed=0)
    model.decoder = nn.Sequential(nn.Linear(1, 784), nn.Sigmoid()).requires_grad_(False)
    single, four = evidence.single_image_errors(model, images, "iid", (1, 4))
    with torch.no_grad():
        call = {"num_samples": 8000, "seed": 1, "reduction": "none"}
        errors = mcelbo.expected_squared_error(images, *model.posterior(images), model.decoder, **call).double()
    assert single == pytest.approx(float(errors.std() / errors.mean()), rel=1e-6)
    # The deviation of 2,000 estimates of kurtosis at most 15 is known to sqrt(14 / 2000) / 2 = 4%; five times that, in
    # both: false alarm below 1 in 10^6.
    assert four == pytest.approx(single / 2, rel=5 * math.sqrt(14 / 2000) / 2)
    assert math.isnan(evidence.single_image_errors(model, images, "antithetic", (1, 4))[0])


@pytest.mark.usefixtures("_small")
def test_all_of_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evidence.main(["--epochs", "1", "--output", str(tmp_path / "docs" / "alike.png")])
    printed = capsys.readouterr().out
    parts = ("| 1 latent, iid | 1 latent, antithetic |", "| n = 256 |", "| decoded, y | (50, 784) |", "their variance")
    for part in parts:
        assert part in printed
    assert (tmp_path / "docs" / "alike.png").read_bytes().startswith(b"\x89PNG")
