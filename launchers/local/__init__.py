"""Training in a container on this machine."""
