"""The torture rack: real publishers, workers, operators and faults, and a checker of what they did.

`make soak MINUTES=10 SEED=1`, or `python -m tests.soak`. docs/proof.md explains it.
"""
