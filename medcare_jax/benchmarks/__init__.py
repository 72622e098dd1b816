"""What `tools/benchmark.py` measures; a subject is a module with `measure` and `table`.

`worker.py` and all that it imports for a PyTorch contender stay free of jax, so that nobody's
memory is counted against another.
"""
