"""What is looked at: validation pairs of a reference and the picture that belongs to it, checked when they are made."""
