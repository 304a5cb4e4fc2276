"""When the quadratic form pays on a GPU, by constants fitted to four calls on an H200."""

from __future__ import annotations

# 20 TFLOP/s, and 3.5 us for a launch; all that follows is in multiplications (with an addition) of single precision.
OF_A_SECOND = 1e13
OF_A_LAUNCH = 3.5e-6 * OF_A_SECOND
# One of the form's own matrices, too small to keep a device busy; and how many times as long one in double precision
# takes where a GPU has half as many units for it, as those of data centres do; others have a 64th.
OF_A_SMALL_ONE, OF_A_WIDE_ONE = 2.5, 2
# Pixels of a batch. The form's matrices of it take some 8 times as much memory as the data, 2 GiB here in single
# precision, where the grid needs that of one chunk.
MOST_OF_A_BATCH = 1 << 26


def pays(batch: int, samples: int, hidden: int, pixels: int, gradient: bool = True) -> bool:
    """Predict whether the quadratic form costs less than the grid, by the multiplications that differ.

    With gradients the grid takes 3 H m for each sample. The form takes H^2 for u and half of it for S, and for each
    call half of H^2 m for G, all of it for W S, and 5 B H m for the batch, of which one in double precision. For the
    value alone it is one of a sample, half a one of G, and two of the batch. What else differs is launches: 7 before
    the pass, 6 behind it. Beyond `MOST_OF_A_BATCH` it costs too much memory.
    """
    if batch * pixels > MOST_OF_A_BATCH:
        return False
    of_a_grid, of_a_sample, of_a_square, of_a_batch, launches = (3, 1.5, 1.5, 4, 13) if gradient else (1, 1, 0.5, 1, 7)
    rows = batch * samples
    form = of_a_sample * rows * hidden**2
    products = of_a_square * hidden**2 * pixels + (of_a_batch + OF_A_WIDE_ONE) * batch * hidden * pixels
    return form + OF_A_SMALL_ONE * products + launches * OF_A_LAUNCH < of_a_grid * rows * hidden * pixels
