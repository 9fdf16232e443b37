"""Answering: what is kept of images and videos between questions, long contexts, memory planned before it is taken."""
