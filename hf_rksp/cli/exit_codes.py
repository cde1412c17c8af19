"""Exit codes of ``rksp``, as its --help states them."""

OK = 0
FAILED = 1
BAD_INPUT = 2
DIFFERS = 3
LIKELY_LOST = 4
BROKEN = 5
INTERRUPTED = 130

EPILOG = """exit codes:
  0    done
  1    failed: internal error, or a result could not be written
  2    bad input: an option, a model, a text or a report cannot be used; nothing was done
  3    check: the statistics differ between runs; see the table
  4    risk --fail-above P: the probability is above P, or there is no answer
  5    doctor --fail-if-broken: the run is broken, or a checkpoint is damaged
  130  interrupted
"""
