"""From figures to alerts: rules, what they say of an evaluation, and when to speak. Pure: no files, no torch."""
