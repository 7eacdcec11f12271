"""What a person sees: the log line, panels, strips, and the panel of one picture without training."""
