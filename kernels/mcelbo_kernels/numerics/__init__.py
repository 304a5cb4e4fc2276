"""Scalar mathematics, written once and compiled for every target: random words, normals, activations, cells."""
