"""Distillation: models and schedules that need fewer forward passes."""
