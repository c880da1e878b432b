"""Golden recordings of the wire: what clients, the upstream and the store saw of known requests.

``python -m tests.integration.golden record`` writes them anew; `test_golden.py` compares. A change
that is meant shows as a diff of the text files beside this module, and is reviewed as one.
"""
