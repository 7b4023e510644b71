"""Training in Kaggle kernels."""
