"""LightningModules of the stages: alignment (1), instruction (2), and vision pretraining (0) of the toy world."""
