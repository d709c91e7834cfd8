"""Distillation: models and schedules that need fewer forwards."""
