"""From what was seen of a pair to figures: their declarations, scores, intervals, and the record of one evaluation."""
