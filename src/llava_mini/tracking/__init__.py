"""Reporting (to MLflow, TensorBoard) that can neither end nor slow a run: a journal, and a thread that sends it."""
