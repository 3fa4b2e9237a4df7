"""Training: data, episodes, loop."""
