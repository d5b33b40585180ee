"""The HTTP server: OpenAI's interface over a jaxserve engine. Never imports jax."""
