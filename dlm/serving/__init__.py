"""Serving a model over HTTP: one engine whose batch rows join and leave, and an API in front."""
