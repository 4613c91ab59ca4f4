"""Tasks on Sentinel-2 images that learn from a few labels: classification of images."""
