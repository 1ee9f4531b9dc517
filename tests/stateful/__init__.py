"""A state machine that drives the real ledger, and what must hold after each of its steps.

`reference` says what each operation shall do, in the words of docs/state_machine.md; `promise` knows which
attempts handed over a dot and what the servers made of it; `machine` does the steps and holds the database
against both.
"""
