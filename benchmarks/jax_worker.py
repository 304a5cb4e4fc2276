"""JAX's side of a benchmark, a process that sleeps until asked: `python -m benchmarks.jax_worker`.

Requests come as lines of JSON on standard input, and each gets a line of JSON on standard output. It imports JAX, NumPy
and the standard library only, so that it runs in an environment whose pins disagree with torch's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import visit

Parameters = tuple[jax.Array, jax.Array, tuple[tuple[jax.Array, jax.Array], ...]]  # mu, logvar, ((weight, bias), ...)


class Task:
    """One workload's tensors and its compiled functions."""

    def __init__(self, arrays: dict[str, np.ndarray], samples: int, output: str) -> None:
        count = sum(name.startswith("weight") for name in arrays)
        # weights (inputs, outputs), as a JAX user holds them
        layers = tuple(
            (jnp.array(np.ascontiguousarray(arrays[f"weight{i}"].T)), jnp.array(arrays[f"bias{i}"]))
            for i in range(count)
        )
        self.parameters: Parameters = (jnp.array(arrays["mu"]), jnp.array(arrays["logvar"]), layers)
        self.x = jnp.array(arrays["x"])  # (B, m)
        self.eps = jnp.array(arrays["eps"]) if "eps" in arrays else None
        self.samples, self.sigmoid = samples, output == "sigmoid"
        self.key = jax.random.key(0)
        self.compiled = {
            "value": jax.jit(self.draw(self.loss)),
            "gradients": jax.jit(self.draw(jax.value_and_grad(self.loss))),
        }

    def loss(self, parameters: Parameters, x: jax.Array, eps: jax.Array) -> jax.Array:
        """Return the mean of (x - D(mu + exp(logvar/2) eps))^2 over data, samples and pixels."""
        mu, logvar, layers = parameters
        z = mu[:, None] + jnp.exp(logvar / 2)[:, None] * eps
        h = z.reshape(-1, z.shape[-1])  # (B n, d)
        for index, (weight, bias) in enumerate(layers):
            h = h @ weight + bias
            if index + 1 < len(layers):
                h = jax.nn.relu(h)
        y = jax.nn.sigmoid(h) if self.sigmoid else h
        return jnp.mean(jnp.square(y.reshape(*eps.shape[:2], -1) - x[:, None]))

    def draw(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function` with fresh noise, and the key of the next call beside its result."""

        def drawn(key: jax.Array, parameters: Parameters, x: jax.Array) -> tuple[jax.Array, Any]:
            following, now = jax.random.split(key)
            shape = (parameters[0].shape[0], self.samples, parameters[0].shape[1])
            eps = jax.random.normal(now, shape, x.dtype) if self.eps is None else self.eps
            return following, function(parameters, x, eps)

        return drawn

    def call(self, mode: str) -> Any:
        """Carry out one call and wait for all of its results."""
        self.key, result = jax.block_until_ready(self.compiled[mode](self.key, self.parameters, self.x))
        return result

    def save_result(self, path: str) -> None:
        """Save the value and the gradients, weights in torch's layout."""
        value, (mu, logvar, layers) = self.call("gradients")
        named: dict[str, Any] = {"value": value, "mu": mu, "logvar": logvar}
        for index, (weight, bias) in enumerate(layers):
            named |= {f"weight{index}": weight.T, f"bias{index}": bias}
        np.savez(path, **named)


def main() -> None:
    """Answer requests until standard input ends."""
    # Whatever JAX or its compiler prints must not mix with the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    task: Task | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if request["do"] == "load":
            with np.load(request["arrays"]) as arrays:
                task = Task(dict(arrays), request["samples"], request["output"])
            answer["version"] = jax.__version__
        elif task is not None and request["do"] == "time":
            answer["seconds"] = visit(partial(task.call, request["mode"]), request["seconds"])
        elif task is not None and request["do"] == "result":
            task.save_result(request["arrays"])
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
