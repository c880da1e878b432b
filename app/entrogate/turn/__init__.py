"""One turn from its request to its record.

`state` holds what is known, `session` owns what a running turn holds on to, `machine` runs its legs
and carries out decisions, `stream` and `body` write the answer, `record` makes what is stored.
"""
