"""An OpenAI-compatible gateway that decides by entropy whether a tool call is worth making."""

__version__ = "0.1.0"
