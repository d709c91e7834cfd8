"""Texts held to a regular language: rules, their automata, and exact draws under them."""
