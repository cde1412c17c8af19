"""What became of a run: its log and its checkpoints, also those of a run that never had hf_rksp."""
