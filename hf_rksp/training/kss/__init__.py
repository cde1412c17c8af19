"""KSS, the spectral regulariser, at work in a training run."""
