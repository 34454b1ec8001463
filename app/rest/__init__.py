"""The local REST endpoint: OpenAI-compatible routes over an engine client."""
