"""From a denoiser that runs to attribution maps: what to look at, hooks, the only softmax, sums over steps, maps."""
