"""Faults on the running system: real vLLM, real databases, real processes that are killed.

``python -m tests.chaos`` goes through all of them and reports; tests/e2e/test_faults.py runs each
for a few seconds.
"""
