"""Constrained decoding: constraints, their automata, and exact joint sampling under them."""
