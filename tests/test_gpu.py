"""NVIDIA GPUs as the torch face sees them, without one: what stands in the way, in words, and who never asks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mcelbo import gpu
from mcelbo.decoders import choose
from mcelbo_kernels.numerics.cells import BY_NAME
from tests.gpu_cases import LOSSES, inputs, values_and_gradients

CUDA = torch.device("cuda", 0)
VERSIONS = {"numba-cuda": "0.30.4", "cuda-core": "1.2.2", "cuda-bindings": "12.9.4"}
USED_ON_CUDA = ("numba.cuda", "numba_cuda", "cuda.core", "mcelbo_kernels.cuda")


class Host:
    """A machine with a GPU, as far as `gpu.obstacle` looks."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch, self.versions = patch, dict(VERSIONS)
        self.driver(12080)
        self.toolkit("12.8")
        self.capability(9, 0)
        patch.setattr(gpu, "installed", self.versions.get)
        patch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")

    def toolkit(self, version: str | None) -> None:
        """Let torch be built with a version of CUDA."""
        self.patch.setattr(torch.version, "cuda", version)

    def capability(self, major: int, minor: int) -> None:
        """Let the GPU be of a compute capability."""
        self.patch.setattr(torch.cuda, "get_device_capability", lambda device: (major, minor))

    def driver(self, version: int) -> None:
        """Let the driver support a version of CUDA; the seam itself may want packages that are not installed."""
        self.patch.setitem(sys.modules, "mcelbo_kernels.cuda.seam", SimpleNamespace(driver_version=lambda: version))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """A machine with a GPU and all that its kernels need."""
    monkeypatch.setitem(sys.modules, "mcelbo_kernels.cuda", SimpleNamespace())
    gpu.obstacle.cache_clear()
    yield Host(monkeypatch)
    gpu.obstacle.cache_clear()


def linear() -> nn.Linear:
    return nn.Linear(2, 6)


def test_nothing_stands_in_the_way_of_a_host_that_has_all(host: Host) -> None:
    assert gpu.obstacle(CUDA) is None
    gpu.require(CUDA)


@pytest.mark.parametrize("device", [torch.device("cpu"), torch.device("mps"), torch.device("xpu", 1)])
def test_other_devices_are_named(host: Host, device: torch.device) -> None:
    assert gpu.obstacle(device) == f"tensors on {device} are not on an NVIDIA GPU"


def test_a_torch_without_cuda_is_named(host: Host) -> None:
    host.toolkit(None)
    assert "this PyTorch is built without CUDA" in str(gpu.obstacle(CUDA))


@pytest.mark.parametrize(("toolkit", "extra"), [("11.8", "cu12"), ("12.8", "cu12"), ("13.0", "cu13"), ("14.1", "cu13")])
def test_missing_packages_come_with_the_command_that_installs_them(host: Host, toolkit: str, extra: str) -> None:
    host.toolkit(toolkit)
    del host.versions["cuda-core"], host.versions["numba-cuda"]
    expected = f"the CUDA kernels need numba-cuda and cuda-core, not installed here: pip install 'mcelbo[{extra}]'"
    assert gpu.obstacle(CUDA) == expected


def test_an_old_gpu_is_named(host: Host) -> None:
    host.capability(7, 0)
    expected = "Some GPU has compute capability 7.0: the CUDA kernels need 7.5 or newer"
    assert gpu.obstacle(CUDA) == expected
    gpu.obstacle.cache_clear()
    host.capability(7, 5)
    assert gpu.obstacle(CUDA) is None


def test_an_old_driver_is_named(host: Host) -> None:
    host.versions["cuda-bindings"] = "13.0.1"
    assert "the NVIDIA driver supports CUDA 12.8, and the kernels' compiler is that of CUDA 13" in str(
        gpu.obstacle(CUDA)
    )


def test_packages_that_do_not_go_together_are_named(host: Host) -> None:
    host.patch.setitem(sys.modules, "mcelbo_kernels.cuda.seam", None)
    found = str(gpu.obstacle(CUDA))
    assert found.startswith("numba-cuda cannot be imported here (ModuleNotFoundError: import of")
    assert found.endswith("pip install 'mcelbo[cu12]'")


@pytest.mark.parametrize(("driver", "compiler"), [(12040, 12), (12000, 12), (13000, 12), (13010, 13)])
def test_a_driver_runs_what_compilers_of_its_major_version_make(driver: int, compiler: int) -> None:
    assert gpu.too_old(driver, compiler) is None


def test_what_to_do_about_an_old_driver() -> None:
    message = str(gpu.too_old(12040, 13))
    assert "supports CUDA 12.4" in message
    assert "update the driver, or pip install 'mcelbo[cu12]'" in message


def test_what_is_asked_once_is_known(host: Host) -> None:
    assert gpu.obstacle(CUDA) is None
    host.toolkit(None)
    assert gpu.obstacle(CUDA) is None
    assert gpu.obstacle(torch.device("cuda", 1)) is not None


def test_versions_are_those_of_installed_packages() -> None:
    assert gpu.installed("torch") is not None
    assert gpu.installed("no-such-package-as-this") is None


def test_kernels_are_those_of_cpus_and_of_nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [gpu.has_kernels(torch.device(kind)) for kind in ("cpu", "cuda", "mps")] == [True, True, False]
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert [gpu.has_kernels(torch.device(kind)) for kind in ("cpu", "cuda", "mps")] == [True, False, False]


def test_a_fusable_decoder_asks_for_what_is_missing(host: Host) -> None:
    del host.versions["numba-cuda"]
    with pytest.raises(RuntimeError, match=r"need numba-cuda, not installed.*Or pass decoder=lambda z: decoder\(z\)"):
        choose(linear(), CUDA)


def test_a_fusable_decoder_is_fused_on_cuda(host: Host) -> None:
    explanation = choose(linear(), CUDA).explanation
    assert (explanation.path, explanation.device) == ("grid", "cuda")


def test_other_decoders_need_nothing_on_cuda(host: Host) -> None:
    host.versions.clear()
    decoder = linear()
    for other in (nn.Sequential(nn.Linear(2, 6), nn.LayerNorm(6)), lambda z: decoder(z)):
        assert choose(other, CUDA).explanation.path == "any"


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")
def test_a_choice_for_cuda_can_be_traced(host: Host) -> None:
    """What is installed cannot be looked up within a graph: the op looks when it runs."""
    decoder = linear()

    @torch.compile(fullgraph=True, backend="eager")
    def fused(x: torch.Tensor) -> torch.Tensor:
        return x + choose(decoder, CUDA).fused

    assert fused(torch.zeros(())) == 1


class Waits(TorchDispatchMode):
    """What torch is asked to do that would wait for a GPU: to tell a value, or to copy a number there for `where`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        number = any(isinstance(each, torch.Tensor) and not each.dim() for each in args)
        if function is torch.ops.aten._local_scalar_dense.default or (function is torch.ops.aten.where.self and number):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


def test_what_waits_is_noticed() -> None:
    with Waits() as waits:
        float(torch.ones(()))
        torch.where(torch.tensor([True]), torch.ones(1), 0.0)
    assert len(waits.found) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_asks_for_a_value(name: str) -> None:
    with Waits() as waits:
        for seed in (3, torch.tensor(3), None):
            values_and_gradients(LOSSES[name], inputs(stand_in=False), num_samples=4, seed=seed)
    assert waits.found == []


@pytest.mark.parametrize("cell", BY_NAME)
def test_no_cell_asks_for_a_value(cell: str) -> None:
    y, x = torch.linspace(-3, 3, 7), torch.linspace(0, 1, 7)
    with Waits() as waits:
        BY_NAME[cell].arrays(y, x, torch)
    assert waits.found == []


USES_THE_CPU = f"""
import sys, torch, mcelbo
x, mu, logvar = torch.rand(3, 6), torch.zeros(3, 2, requires_grad=True), torch.zeros(3, 2, requires_grad=True)
decoder = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Sigmoid())
for reduction in ("mean", "none"):
    loss = mcelbo.expected_squared_error(x, mu, logvar, decoder, num_samples=4, reduction=reduction)
    loss.sum().backward()
print(sorted(name for name in sys.modules if name.startswith({USED_ON_CUDA})))
"""


def test_nothing_of_cuda_is_imported_for_tensors_on_the_cpu() -> None:
    """Of what the CUDA kernels need: torch itself may import NVIDIA's bindings, cuda.bindings."""
    printed = subprocess.run([sys.executable, "-c", USES_THE_CPU], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
