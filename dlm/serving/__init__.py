"""Serves a model over HTTP: an engine with continuous batching, and OpenAI's API in front of it."""
