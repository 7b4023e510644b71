"""Renting machines at Vast.ai."""
