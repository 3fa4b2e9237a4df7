"""Video: paint the first frame, follow every object to the last."""
