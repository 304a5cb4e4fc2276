"""What `mcelbo demo` and `mcelbo study` do."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import mcelbo
from mcelbo.demo import report, training
from mcelbo.demo.data import Images, UsageError, load
from mcelbo.demo.model import Autoencoder

__all__ = ["UsageError", "demo", "study"]

SCORED = 500  # images of each set: enough for a table, and soon done with large images too
STUDIED = training.BATCH
SCORED_WITH = (4, 32, 256)
STUDIED_WITH = (1, 4, 16, 64, 256, 1024)


def demo(options: argparse.Namespace) -> None:
    """Train on images, print a table of bounds, save a report."""
    check_output(options.output)
    console = Console()
    images, model = trained(options, console)
    console.print(scores_table(model, images, options.seed))
    found = studied(model, images.test, STUDIED_WITH, options.seed)
    studied_images = min(STUDIED, len(images.test))
    report.save(options.output, images.name, model, images.test, found, studied_images, options.seed)
    console.print(f"report: {options.output}", soft_wrap=True, highlight=False)


def study(options: argparse.Namespace) -> None:
    """Train on images, print how far estimates with few samples are off."""
    console = Console()
    images, model = trained(options, console)
    found = studied(model, images.test, options.counts, options.seed)
    batch = min(STUDIED, len(images.test))
    console.print(f"\nOf the loss of {batch} test images, by samples per image:\n\n{found}\n", highlight=False)
    value, posterior, decoder = found.enough(0.01)
    console.print(
        f"Samples per image for a relative error of 1%: {value:,.0f} for the value, "
        f"{posterior:,.0f} for the gradient by mu and logvar, {decoder:,.0f} for the decoder's.",
        highlight=False,
    )


def check_output(path: Path) -> None:
    """Find out before the training whether the report can be written after it."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"--output is {path}: expected a name that ends in .png")
    if not path.parent.is_dir():
        raise UsageError(f"--output is {path}: there is no folder {path.parent}")


def trained(options: argparse.Namespace, console: Console) -> tuple[Images, Autoencoder]:
    """Load the images and train on them, with a progress bar on a terminal."""
    images = load(options.data, options.seed)
    shape = " x ".join(map(str, images.train.shape[1:]))
    console.print(
        f"{images.name}: {len(images.train):,} images of {shape} to train on, {len(images.test):,} to test; "
        f"{options.latent} latents, {options.num_samples} samples per image",
        highlight=False,
    )
    epochs = options.epochs or training.default_epochs(images.train)
    with tqdm(total=epochs, desc="training", unit="epoch", disable=None) as bar:

        def done(loss: float) -> None:
            bar.set_postfix_str(f"{-loss:.2f} nats per image", refresh=False)
            bar.update()

        model = Autoencoder(images.train[0].numel(), options.latent, options.seed)
        training.train(
            model, images.train, epochs=epochs, num_samples=options.num_samples, seed=options.seed, done=done
        )
    return images, model


def studied(model: Autoencoder, images: torch.Tensor, counts: tuple[int, ...], seed: int) -> mcelbo.Study:
    """Study the squared error of a batch of images."""
    x = images[:STUDIED]
    with torch.no_grad():
        mu, logvar = model.posterior(x)
    return mcelbo.study(x, mu, logvar, model.decoder, num_samples=counts, seed=seed)


def scores_table(model: Autoencoder, images: Images, seed: int) -> Table:
    """Return bound, squared error and KL of both sets, with the standard errors of the estimates."""
    sigma = float(model.log_sigma.detach().exp())
    table = Table(
        title=f"Means per image, plus or minus the standard error of sampling (pixel scale {sigma:.3f})",
        title_justify="left",
    )
    for column in ("set", "samples", "bound, nats", "squared error", "KL, nats"):
        table.add_column(column, justify="left" if column == "set" else "right")
    for name, part in (("train", images.train), ("test", images.test)):
        for s in training.evaluate(model, part[:SCORED], SCORED_WITH, seed):
            table.add_row(
                name,
                str(s.samples),
                f"{s.bound:.3f} ± {s.bound_error:.3f}",
                f"{s.squared_error:.4f} ± {s.squared_error_error:.4f}",
                f"{s.kl:.3f}",
            )
        table.add_section()
    return table
