"""Regenerates the figures that the README quotes in answer to its question, as Markdown, and a picture.

    pip install -e '.[demo]'
    python -m benchmarks.evidence                     a few minutes; the picture goes to docs/alike.png

The images are 28 x 28 patches of the two photographs that come with scikit-learn. A variational autoencoder with a
linear-sigmoid decoder is fitted to them; everything is then measured on patches that it was not fitted to.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

import mcelbo
from mcelbo.demo import report, training
from mcelbo.demo.model import Autoencoder

SIDE, STRIDE = 28, 14
TEST = 300
LATENTS = (1, 8)
MANY = 10_000
COUNTS = (1, 4, 16, 64, 256, 1024, MANY)
SINGLE_IMAGES = 20  # looked at one at a time, each with
ESTIMATES = 64  # independent estimates of 10,000 samples, more for smaller numbers
BATCH = 128
BATCHES = 16
GREY = torch.tensor([0.299, 0.587, 0.114])  # of red, green and blue: ITU-R BT.601


def patches(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return grey patches (N, 28, 28) from 0 to 1, shuffled, to fit to and to test on."""
    from sklearn.datasets import load_sample_images

    photographs = [torch.from_numpy(np.array(image)) / 255 @ GREY for image in load_sample_images().images]
    cut = [photograph.unfold(0, SIDE, STRIDE).unfold(1, SIDE, STRIDE).flatten(0, 1) for photograph in photographs]
    every = torch.cat(cut)
    every = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))]
    return every[TEST:].contiguous(), every[:TEST].contiguous()


def fitted(images: Tensor, latent: int, epochs: int) -> Autoencoder:
    """Return an autoencoder whose decoder is one affine layer and a sigmoid."""
    model = Autoencoder(SIDE * SIDE, latent, seed=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.decoder = nn.Sequential(nn.Linear(latent, SIDE * SIDE), nn.Sigmoid())
    training.train(model, images, epochs=epochs, num_samples=8, seed=0)
    return model


def single_image_errors(model: Autoencoder, images: Tensor, sampler: str, counts: Sequence[int]) -> list[float]:
    """Return the relative standard error of one image's squared error for each n, the median over the images.

    It is measured: the standard deviation of independent estimates with n samples over their mean.
    """
    n = max(counts) * ESTIMATES
    draw = {"num_samples": n, "sampler": sampler, "seed": 1}
    with torch.no_grad():
        mu, logvar = model.posterior(images)
        errors = mcelbo.expected_squared_error(images, mu, logvar, model.decoder, reduction="none", **draw).double()
    found = []
    for count in counts:
        if count % 2 and sampler == "antithetic":
            found.append(float("nan"))
            continue
        estimates = errors[:, : n // count * count].reshape(len(images), -1, count).mean(2)
        found.append(float((estimates.std(1) / estimates.mean(1)).median()))
    return found


def batch_choice(model: Autoencoder, images: Tensor, samples: int = 256) -> tuple[float, float]:
    """Return how much the loss and the decoder's gradient vary with the choice of the batch alone.

    The loss's standard deviation is relative to its mean, the gradient's to the root mean square of its
    norm: near an optimum the mean gradient is close to 0.
    """
    generator = torch.Generator().manual_seed(2)
    values, gradients = [], []
    for index in range(BATCHES):
        x = images[torch.randperm(len(images), generator=generator)[:BATCH]]
        mu, logvar = (tensor.detach() for tensor in model.posterior(x))
        loss = mcelbo.expected_squared_error(x, mu, logvar, model.decoder, num_samples=samples, seed=index)
        found = torch.autograd.grad(loss, list(model.decoder.parameters()))
        values.append(loss.detach().double())
        gradients.append(torch.cat([gradient.flatten() for gradient in found]).double())
    of_value, of_gradient = torch.stack(values), torch.stack(gradients)
    norm = of_gradient.square().sum(1).mean().sqrt()
    return float(of_value.std() / of_value.mean()), float(of_gradient.var(0).sum().sqrt() / norm)


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown, numbers to the right."""
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def percent(share: float) -> str:
    """Write a share with two digits."""
    return "-" if np.isnan(share) else f"{100 * share:#.2g}%".replace(".%", "%")


def why_not_ten_thousand(models: dict[int, Autoencoder], test: Tensor) -> str:
    """Return the table of relative standard errors of one image's squared error."""
    samplers = ("iid", "antithetic")
    columns = {
        f"{latent} latent{'s' if latent > 1 else ''}, {sampler}": single_image_errors(
            model, test[:SINGLE_IMAGES], sampler, COUNTS
        )
        for latent, model in models.items()
        for sampler in samplers
    }
    rows = [[f"{n:,}", *(percent(c[i]) for c in columns.values())] for i, n in enumerate(COUNTS)]
    return markdown(["n", *columns], rows)


def in_training(model: Autoencoder, train: Tensor, test: Tensor) -> str:
    """Return the table of a batch's relative errors, beside what the choice of the batch does."""
    x = test[:BATCH]
    study = mcelbo.study(x, *model.posterior(x), model.decoder, seed=1)
    columns = (study.relative_error, study.posterior_gradient, study.decoder_gradient)
    rows = [[f"n = {n:,}", *(percent(c[i]) for c in columns)] for i, n in enumerate(study.num_samples)]
    value, gradient = batch_choice(model, train)
    rows.append([f"choice of the {BATCH} images", percent(value), "", percent(gradient)])
    return markdown(["source of the error", "value", "gradient by mu, logvar", "decoder's gradient"], rows)


def shapes(model: Autoencoder, image: Tensor) -> str:
    """Return what becomes of the n samples of one image, step by step, with plain torch beside mcelbo."""
    mu, logvar = (tensor.detach() for tensor in model.posterior(image))
    eps = mcelbo.noise(1, 1, MANY, mu.shape[1])[0]
    z = mu + (logvar / 2).exp() * eps
    y = model.decoder(z).detach()
    squares = (image.flatten(1) - y).square()
    each = squares.sum(1)
    ours = mcelbo.expected_squared_error(image, mu, logvar, model.decoder, num_samples=MANY, seed=1)
    rows = [
        ["samples z", tuple(z.shape), f"{z.numel():,}"],
        ["decoded, y", tuple(y.shape), f"{y.numel():,}"],
        ["squared errors", tuple(squares.shape), f"{squares.numel():,}"],
        ["summed over the pixels, T", tuple(each.shape), f"{each.numel():,}"],
        ["averaged over samples and pixels", "()", 1],
    ]
    table = markdown(["step", "shape", "numbers"], rows)
    return f"{table}\n\nplain torch: {float(squares.double().mean()):.8f}    mcelbo: {float(ours.detach()):.8f}"


def averaging_first(models: dict[int, Autoencoder], test: Tensor) -> str:
    """Return the exact decomposition, mean over the test patches."""
    rows = []
    for latent, model in models.items():
        found = mcelbo.reconstruction_spread(test, *model.posterior(test), model.decoder, num_samples=MANY, seed=1)
        error, of_mean, variance = (float(part.mean()) for part in found[2:])
        gap = float((found.error - found.error_of_mean - found.variance).abs().max() / found.error.max())
        rows.append(
            [latent, f"{error:.4f}", f"{of_mean:.4f}", f"{variance:.4f}", percent(variance / error), f"{gap:.0e}"]
        )
    head = ["latents", "error of the samples", "error of their average", "their variance", "share", "largest gap"]
    return markdown(head, rows)


def picture(path: Path, model: Autoencoder, test: Tensor) -> None:
    """Draw decodings of one patch's samples, side by side: of the patch of which the decoder explains most."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    with torch.no_grad():
        decoded = model.decoder(model.posterior(test)[0]).reshape(test.shape)
        residual, contrast = (
            (test - other).square().sum((1, 2)) for other in (decoded, test.mean((1, 2), keepdim=True))
        )
        best = int((contrast - residual).argmax())
        report.draw_spread(figure.subfigures(1, 1), model, test[best], seed=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=report.DOTS_PER_INCH)


def main(argv: Sequence[str] | None = None) -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("docs/alike.png"), help="the picture (%(default)s)")
    parser.add_argument("--epochs", type=int, default=60, help="of fitting (%(default)s)")
    options = parser.parse_args(argv)
    train, test = patches()
    print(f"{len(train):,} patches of {SIDE} x {SIDE} pixels to fit to, {len(test)} others to measure on\n")
    models = {latent: fitted(train, latent, options.epochs) for latent in tqdm(LATENTS, desc="fitting", disable=None)}
    many = models[max(LATENTS)]
    print(f"Relative standard error of one patch's squared error\n\n{why_not_ten_thousand(models, test)}\n")
    print(f"Relative standard error of a batch of {BATCH} patches\n\n{in_training(many, train, test)}\n")
    print(f"What becomes of the samples of one patch, 1 latent\n\n{shapes(models[1], test[:1])}\n")
    print(f"Averaging first, pixels summed, mean of {TEST} patches\n\n{averaging_first(models, test)}\n")
    picture(options.output, many, test)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
