"""The demo's one picture: what the model makes of images, how samples differ, and how many of them are enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

import mcelbo
from mcelbo.demo.model import Autoencoder

SHOWN = 10  # images, and decodings of one of them
SPREAD_SAMPLES = 1000
GUIDE: dict[str, Any] = {"color": "0.6", "linestyle": "--", "linewidth": 1, "zorder": 0}
INCHES = (10, 10.6)
DOTS_PER_INCH = 120
HEADING: dict[str, Any] = {"fontsize": 12, "fontweight": "bold"}
NOTE: dict[str, Any] = {"fontsize": 9}


def save(path: Path, name: str, model: Autoencoder, images: Tensor, found: mcelbo.Study, batch: int, seed: int) -> None:
    """Draw test images, the spread of one and the study of many, and write the picture to `path`."""
    figure = Figure(figsize=INCHES, layout="constrained")
    figure.suptitle(f"A variational autoencoder of {name}", fontsize=15)
    parts = figure.subfigures(3, 1, squeeze=False, height_ratios=(2.6, 3.4, 4.2), hspace=0.05)
    top, middle, bottom = parts.flat
    with torch.no_grad():
        draw_reconstructions(top, model, images[:SHOWN])
        draw_spread(middle, model, images[most_varied(model, images[:SHOWN], seed)], seed)
    draw_study(bottom, found, batch)
    figure.savefig(path, dpi=DOTS_PER_INCH)


def draw_reconstructions(figure: SubFigure, model: Autoencoder, images: Tensor) -> None:
    """Draw images above the decodings of their posteriors' means."""
    figure.suptitle("Test images, and below each what the decoder makes of its code", **HEADING)
    decoded = model.decoder(model.posterior(images)[0]).reshape(images.shape)
    axes = figure.subplots(2, SHOWN)
    for row, pictures in zip(axes, (images, decoded), strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, picture in zip(row, pictures, strict=False):
            show(axis, picture)


def most_varied(model: Autoencoder, images: Tensor, seed: int) -> int:
    """Return the index of the image whose decodings differ most, by their share of the squared error."""
    found = mcelbo.reconstruction_spread(
        images, *model.posterior(images), model.decoder, num_samples=SPREAD_SAMPLES, seed=seed
    )
    return int((found.variance / found.error).argmax())


def draw_spread(figure: SubFigure, model: Autoencoder, image: Tensor, seed: int) -> None:
    """Draw decodings of samples of an image, how each differs from their average, and their spread."""
    figure.suptitle("One image, decoded from samples of its posterior: alike, not the same", **HEADING)
    mu, logvar = model.posterior(image[None])
    few = SHOWN - 2
    samples = model.decoder(mu + (logvar / 2).exp() * mcelbo.noise(seed, 1, few, mu.shape[1])[0])
    samples = samples.reshape(few, *image.shape)
    spread = mcelbo.reconstruction_spread(image[None], mu, logvar, model.decoder, num_samples=SPREAD_SAMPLES, seed=seed)
    average, deviation, error, error_of_average, variance = (part[0] for part in spread)
    axes = figure.subplots(2, SHOWN)
    for axis, picture in zip(axes[0], (image, *samples, average), strict=True):
        show(axis, picture)
    titles = ("original", *(f"sample {i + 1}" for i in range(few)), f"average\nof {SPREAD_SAMPLES:,}")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, **NOTE)
    differences = samples - average
    reach = float(differences.abs().max())
    for axis, difference in zip(axes[1, 1:-1], differences, strict=True):
        axis.imshow(of_colours(difference).numpy(), cmap="RdBu_r", vmin=-reach, vmax=reach)
        axis.set_axis_off()
    axes[1, 0].set_axis_off()
    axes[1, 0].text(0, 0.5, f"minus the\naverage:\nblue -{reach:.2f}\nred +{reach:.2f}", va="center", **NOTE)
    axes[1, -1].imshow(of_colours(deviation).numpy(), cmap="viridis", vmin=0)
    axes[1, -1].set_axis_off()
    axes[1, -1].set_title(f"spread,\nup to {float(deviation.max()):.2f}", **NOTE)
    figure.supxlabel(
        f"mean squared error of the samples {float(error):.4f}  =  squared error of their average "
        f"{float(error_of_average):.4f}  +  their variance about it {float(variance):.4f}",
        fontsize=10,
    )


def draw_study(figure: SubFigure, found: mcelbo.Study, batch: int) -> None:
    """Draw the estimate with its error band against the number of samples, and the relative errors below 1/sqrt(n)."""
    figure.suptitle(f"How many samples are enough? The loss of {batch} test images", **HEADING)
    n, best = found.num_samples, found.value[np.argmax(found.num_samples)]
    value, error = figure.subplots(1, 2)
    band = 2 * found.standard_error
    value.fill_between(n, best - band, best + band, color="C0", alpha=0.2, label="where 95 in 100 estimates fall")
    value.axhline(best, **GUIDE)
    value.plot(n, found.value, "o-", color="C0", label="one estimate for each n")
    value.set_ylabel("squared error per pixel")
    value.legend(frameon=False, fontsize=9)
    lines = {
        "of the value": (found.relative_error, "C0"),
        "of the gradient by mu, logvar": (found.posterior_gradient, "C1"),
        "of the decoder's gradient": (found.decoder_gradient, "C2"),
    }
    for name, (relative, colour) in lines.items():
        error.plot(n, 100 * relative, "o-", color=colour, label=name)
        error.plot(n, 100 * relative[-1] * np.sqrt(n[-1] / n), **GUIDE)
    error.plot([], [], **GUIDE, label=r"$1/\sqrt{n}$")
    error.set_yscale("log")
    error.yaxis.set_major_formatter(lambda percent, _: f"{percent:g}%")
    error.set_ylabel("standard error, relative")
    error.legend(frameon=False, fontsize=9, loc="lower left")
    for axis in (value, error):
        axis.set_xscale("log", base=2)
        axis.set_xticks(n, [f"{count:,}" for count in n])
        axis.minorticks_off()
        axis.set_xlabel("samples per image, n")
        axis.spines[["top", "right"]].set_visible(False)


def show(axis: Axes, image: Tensor) -> None:
    """Draw an image (H, W) or (H, W, 3) with values from 0 to 1."""
    axis.imshow(image.numpy(), cmap="gray" if image.dim() == 2 else None, vmin=0, vmax=1)
    axis.set_axis_off()


def of_colours(image: Tensor) -> Tensor:
    """Return for each pixel (H, W) the value of the colour that is furthest from 0."""
    if image.dim() == 2:
        return image
    furthest = image.abs().argmax(dim=2, keepdim=True)
    return image.gather(2, furthest).squeeze(2)
