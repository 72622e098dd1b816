"""One file per run; each imports base.py and states only its difference."""
