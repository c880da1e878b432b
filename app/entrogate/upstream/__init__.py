"""Where tokens come from: vLLM over HTTP, a managed vLLM process, resuming a turn."""
