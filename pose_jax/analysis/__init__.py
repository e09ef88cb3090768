"""What a trained network's inside looks like: pure libraries on the host.

- `pca`: principal components of stored activations, the walk along them, nearest samples.
- `attributes`: what a person's labels say (posture, scale, facing, limb angles), to name
  components and clusters.
- `clusters`: k-means with its stability, silhouettes, agreement with attributes, 2-D views.
"""
