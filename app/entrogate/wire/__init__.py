"""HTTP bodies in and out: OpenAI's schemas as vLLM speaks them, server-sent events, errors."""
