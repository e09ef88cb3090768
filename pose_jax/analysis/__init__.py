"""What a trained network's inside looks like.

- `taps`: which taps there are, and reading them over people.
- `skips`: every subset of the skip gates closed, CKA, Shapley values of the skips.
- `latent`: decode points of a latent, move people along it, cut it down.
- `pca`: principal components of stored activations, the walk along them, nearest samples.
- `attributes`: what a person's labels say (posture, scale, facing, limb angles), to name
  components and clusters.
- `clusters`: k-means with its stability, silhouettes, agreement with attributes, 2-D views.
- `redundancy`: axes for 95 % of the variance of a tap, channels taken away.
- `attention`: shares of attention per joint's region, and their agreement with interventions.
"""
