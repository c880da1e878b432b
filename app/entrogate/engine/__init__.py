"""What runs inside vLLM's process: exact entropy, the gate before a tool call, and their carrier.

`plugin` is what vLLM loads; `measure` computes the statistics, `gate` decides, `sender` sends,
`processor` ties them to vLLM's model runner. The gateway imports `frames` (the form of what is
sent), `channel`, `environment` and the numbers of `gate`.
"""
