"""VAP-Diffusion: enriched descriptions for medical image generation (MICCAI 2025)."""

__version__ = "0.1.0"
