"""The CI gate: baselines, the verdict, its reports and pictures, calibration, commands and exit codes."""
