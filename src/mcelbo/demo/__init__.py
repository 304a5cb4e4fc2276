"""`mcelbo demo`: a variational autoencoder trained on real images, from the data to one picture that reports on it."""
