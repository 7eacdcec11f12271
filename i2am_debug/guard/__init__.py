"""What an evaluation must leave as it found it: random states, settings, modules, tensors. Knows no training loop."""
