"""The public names: what there is, how it is called, and that its documentation runs."""

from __future__ import annotations

import doctest
import inspect
import subprocess
import sys
from importlib.metadata import version

import pytest

import mcelbo

DRAW = "eps=None, sampler='iid', seed=None, generator=None, datum_offset=0, sample_offset=0"
GAUSSIAN = "Gaussian(sigma=1.0)"
SIGNATURES = {
    "expected_squared_error": f"(x, mu, logvar, decoder, *, num_samples, weight=None, reduction='mean', {DRAW})",
    "elbo": (
        f"(x, mu, logvar, decoder, *, num_samples, likelihood={GAUSSIAN}, beta=1.0, bound='elbo', "
        f"gradient='reparam', weight=None, {DRAW})"
    ),
    "Bernoulli": "()",
    "Gaussian": "(sigma=1.0)",
    "ELBOLoss": (f"(*, num_samples, likelihood={GAUSSIAN}, beta=1.0, bound='elbo', gradient='reparam', sampler='iid')"),
    "posterior_parameters": "(q)",
    "noise": (
        "(seed, batch, num_samples, latent, *, sampler='iid', datum_offset=0, sample_offset=0, dtype=None, device=None)"
    ),
    "explain": "(decoder, x=None, num_samples=None)",
    "warmup": f"(decoder, x, *, num_samples, likelihood={GAUSSIAN}, weight=None, sampler='iid')",
    "Explanation": "(path, device, reason)",
    "Bound": "(loss, bound, reconstruction, kl, variance)",
}


def bare(callable_: object) -> str:
    """Return a signature without its annotations."""
    found = inspect.signature(callable_)  # type: ignore[arg-type]
    empty = inspect.Parameter.empty
    parameters = [p.replace(annotation=empty) for p in found.parameters.values()]
    return str(found.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    assert name in mcelbo.__all__
    assert bare(getattr(mcelbo, name)) == SIGNATURES[name]


def test_the_names_are_sorted_and_there() -> None:
    assert list(mcelbo.__all__) == sorted(mcelbo.__all__)
    assert mcelbo.__version__ == version("mcelbo")
    namespace: dict[str, object] = {}
    exec("from mcelbo import *", namespace)
    assert set(mcelbo.__all__) <= set(namespace)


@pytest.mark.parametrize("name", mcelbo.__all__)
def test_documentation_is_whole_and_its_examples_run(name: str) -> None:
    documented = getattr(mcelbo, name)
    text = inspect.getdoc(documented) or ""
    if inspect.isfunction(documented):
        for section in ("Parameters", "Returns", "Raises", "Examples"):
            assert f"\n{section}\n---" in text, section
        for parameter in inspect.signature(documented).parameters:
            assert parameter in text, parameter
    runner = doctest.DocTestRunner()
    for example in doctest.DocTestFinder(recurse=False).find(documented, name, globs={}):
        runner.run(example)
    assert runner.failures == 0


def test_importing_prints_nothing_and_compiles_nothing() -> None:
    code = (
        "import sys, torch, numba\n"
        "from numba.core import event\n"
        "started = []\n"
        "class Listener(event.Listener):\n"
        "    def on_start(self, e): started.append(e)\n"
        "    def on_end(self, e): pass\n"
        "event.register('numba:compile', Listener())\n"
        "state = torch.get_rng_state(), torch.get_num_threads()\n"
        "import mcelbo\n"
        "assert not started, started\n"
        "assert torch.equal(state[0], torch.get_rng_state()) and state[1] == torch.get_num_threads()\n"
        "assert 'matplotlib' not in sys.modules and 'sklearn' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
