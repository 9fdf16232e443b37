"""Import and export of weights of other projects' LLaVA models."""
