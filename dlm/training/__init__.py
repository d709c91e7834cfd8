"""Training: masked-diffusion fine-tuning on generated or user-supplied examples."""
