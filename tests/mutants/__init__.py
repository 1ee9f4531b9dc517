"""The tests are tested: each guard of the promise is taken out in turn, and the suite must go red.

The guards are in the `.toml` files beside this one. `python -m tests.mutants` runs them all, or
those that are named.
"""
