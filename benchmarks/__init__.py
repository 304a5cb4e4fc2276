"""How fast mcelbo is, beside the best that its peers can do on this machine.

    pip install -e '.[bench]'
    python -m benchmarks                                     every workload, every peer found here: a few minutes
    python -m benchmarks --workloads seed,once --rounds 21   two of them, more rounds
    python -m benchmarks --quick                             does everything run? figures not to be quoted
    python -m benchmarks --device cpu                        on the CPU, also where torch sees an NVIDIA GPU
    python -m benchmarks --jax-python /path/to/python        JAX from an environment of its own, in the same run
    python -m benchmarks memory                              what a call adds to the process: 16 and 100,000 samples
    python -m benchmarks first-call                          the first loss of a fresh process, caches cold and warm
    python -m benchmarks error                               time against the standard error that it buys
    python -m benchmarks sobol                               the same with Sobol points, against independent samples
    python -m benchmarks scaling                             how costs grow with n, B, m, H, d, threads; noise alone
    python -m benchmarks evidence                            errors of real images (also wants the extra 'demo')
    python -m benchmarks all --output figures                everything, one after another

What is measured
    The expected squared error, reduction "mean", float32: its value AND the gradients by mu, logvar and every weight
    and bias (the headline), and its value alone under no_grad. Every peer draws fresh noise in every call, and is
    written the way a good engineer would write it (`peers.py`).

How
    Interleaved: a round visits all peers in turn (A B C A B C ...), so a machine that warms up or slows down does so
    for all of them. A visit is one untimed call and then timed calls for a while; its figure is their median. Ratios
    are taken within a round; what is printed is their median over the rounds. A round during which other processes
    used the cores is discarded and repeated; where that happens too often the result is marked "noisy". JAX runs in a
    process of its own that sleeps until asked and times itself. `scaling` has problems of its own, all of which are
    visited in every round.

On a GPU
    Where torch sees an NVIDIA GPU, the speed run is of mcelbo, eager torch and torch.compile on it; all other subjects
    are of the CPU. Calls are timed by CUDA events, from the end of one to the end of the next, without TF32. Beside
    that stands what the CPU takes to launch a call: where it is as long, a graph is what helps, and so the time of the
    call replayed from a captured CUDA graph stands there as well. Load is that of CPUs and not watched; the spread
    over the rounds is given as always. What to compare with is a large float32 matrix product and a large copy.

What to compare with
    The machine's own peak of fused multiply-adds and its copy bandwidth, measured in the same run. A pass that
    multiplies matrices cannot beat the first; "share of peak" counts the operations of the direct sum, so an algorithm
    that avoids most of them (squared errors of a linear output need no pixels) may exceed 100%.
    What threads hand to each other takes time too: a host may move a virtual machine's cores between near (a cache
    line goes to another core and back in 40 ns) and far (400 ns), and calls by several threads then take up to half
    as long again. No load shows it, so the time of this round trip is printed: compare runs where it is alike.

Tables go to the terminal; CSV, JSON and plots to --output, by default benchmarks/results, those of a GPU under names of
their own. "all" regenerates every figure that the README quotes of these; those of the demo come from `mcelbo demo` and
`mcelbo study`. What to expect of many cores and of ARM is in OTHER_MACHINES.md.
"""
