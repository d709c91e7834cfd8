"""Training: masked-diffusion fine-tuning on generated or own examples."""
