"""When the quadratic form costs less than the grid on a GPU: a prediction, unmeasured."""

from __future__ import annotations

# Of 40 TFLOP/s, and 4 us for a launch; all that follows is in multiplications (with an addition) of single precision.
OF_A_SECOND = 2e13
OF_A_LAUNCH = 4e-6 * OF_A_SECOND
# One in double precision, where a GPU has half as many units for it, as those of data centres do; others have a 64th.
OF_A_WIDE_ONE = 2


def pays(batch: int, samples: int, hidden: int, pixels: int, gradient: bool = True) -> bool:
    """Predict, unmeasured, whether the quadratic form costs less than the grid, by the multiplications that differ.

    With gradients the grid takes 3 H m for each sample. The form takes H^2 twice, for u and for S, and for each call
    the products of G, S and the batch, 2 H^2 m and 5 B H m, one of these in double precision. For the value alone it is
    one of a sample, one of G, and two of the batch. All of them share the units alike, large or small, so that what
    else differs is launches: 7 before the pass, 6 behind it.
    """
    of_a_grid, of_a_sample, of_a_square, of_a_batch, launches = (3, 2, 2, 4, 13) if gradient else (1, 1, 1, 1, 7)
    rows = batch * samples
    form = of_a_sample * rows * hidden**2
    products = of_a_square * hidden**2 * pixels + (of_a_batch + OF_A_WIDE_ONE) * batch * hidden * pixels
    return form + products + launches * OF_A_LAUNCH < of_a_grid * rows * hidden * pixels
