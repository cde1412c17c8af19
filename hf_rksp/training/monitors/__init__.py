"""What watches a training run and changes nothing."""
