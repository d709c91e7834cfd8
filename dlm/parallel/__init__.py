"""Tensor parallelism: a model split over several processes, called from one of them."""
