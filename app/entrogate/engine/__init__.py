"""What runs inside vLLM's process: exact entropy, the gate before a tool call, and their carrier.

`plugin` is what vLLM loads; `statistics` measures, `gate` decides, `publisher` sends, `processor`
ties them to vLLM's model runner. `frames` is the form of what is sent: the only module here that
the gateway imports too.
"""
