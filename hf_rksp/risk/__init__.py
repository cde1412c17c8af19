"""Judgement: what the facts of a profile say about a training run."""
