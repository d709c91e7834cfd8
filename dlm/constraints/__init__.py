"""Texts held to a regular language: rules, their automata, and exact draws under them."""

from dlm.constraints.constraint import Constraint

__all__ = ["Constraint"]
