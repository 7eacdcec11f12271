"""One look at all validation pairs: how a pair becomes a call, what is run, and what was seen."""
