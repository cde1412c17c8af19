"""``python -m hf_rksp``: the command ``rksp``."""

from hf_rksp.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
