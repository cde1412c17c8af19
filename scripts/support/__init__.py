"""Every model type of transformers at a tiny size: see run.py."""
