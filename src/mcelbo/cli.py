"""The command line: `mcelbo demo | study | doctor`."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

# What the extra 'demo' installs, by the names that are imported.
DEMO_EXTRA = ("matplotlib", "PIL", "rich", "sklearn", "tqdm")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    found = parser()
    options = found.parse_args(argv)
    if options.command == "doctor":
        from mcelbo import doctor

        return doctor.run()
    missing = [name for name in DEMO_EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        found.error(f"{options.command} needs {', '.join(missing)}: pip install 'mcelbo[demo]'")
    from mcelbo.demo import commands  # imports what the extra installs

    try:
        commands.demo(options) if options.command == "demo" else commands.study(options)
    except commands.UsageError as problem:
        found.error(str(problem))
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(
        prog="mcelbo", description="Monte Carlo evidence lower bounds for variational autoencoders"
    )
    found.add_argument("--version", action="version", version=version("mcelbo"))
    commands = found.add_subparsers(dest="command", required=True, metavar="demo | study | doctor")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--data", type=Path, metavar="FILE.npz|FOLDER", help="your own images (default: scikit-learn's digits)"
    )
    shared.add_argument(
        "--num-samples", type=positive, default=8, metavar="N", help="samples per image in training (%(default)s)"
    )
    shared.add_argument(
        "--epochs", type=positive, metavar="E", help="passes over the images (default: by their number)"
    )
    shared.add_argument("--latent", type=positive, default=12, metavar="D", help="latent dimensions (%(default)s)")
    shared.add_argument("--seed", type=natural, default=0, metavar="S", help="decides everything random (%(default)s)")
    demo = commands.add_parser(
        "demo", parents=[shared], help="train a variational autoencoder on images and draw a report"
    )
    demo.add_argument(
        "--output", type=Path, default=Path("mcelbo-report.png"), metavar="FILE.png", help="the report (%(default)s)"
    )
    study = commands.add_parser(
        "study", parents=[shared], help="train the same, and print how many samples are enough for it"
    )
    study.add_argument(
        "--counts",
        type=counts,
        default=(1, 4, 16, 64, 256, 1024),
        metavar="N,N,...",
        help="numbers of samples to look at (1,4,16,64,256,1024)",
    )
    commands.add_parser("doctor", help="say what is installed here, and whether the fused path works")
    return found


def positive(text: str) -> int:
    """Read an integer of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected at least 1")
    return number


def natural(text: str) -> int:
    """Read a seed."""
    number = int(text)
    if not 0 <= number < 2**63:
        raise argparse.ArgumentTypeError(f"{text}: expected 0 <= seed < 2**63")
    return number


def counts(text: str) -> tuple[int, ...]:
    """Read a comma-separated list of positive integers."""
    return tuple(positive(part) for part in text.split(","))
