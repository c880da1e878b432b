"""OpenAI's Responses API, to chat requests and from chat answers."""
