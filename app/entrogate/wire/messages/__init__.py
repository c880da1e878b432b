"""Anthropic's Messages API, to chat requests and from chat answers."""
