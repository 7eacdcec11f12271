"""Instruction editing: the picture to edit is the reference, read through joint attention."""
