"""Training in a Colab notebook."""
