"""Evaluation: scores with every answer kept, whether a run has converged, FLOPs."""
