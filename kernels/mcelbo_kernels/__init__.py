"""The kernels behind mcelbo, usable from NumPy alone: `reference` says what is computed, `cpu` computes it fast."""
