"""LLaVA-Mini Lab."""
