"""One run: its stages by name, its evaluations so far, what of them is written, judged and told, and where drawing happens."""
