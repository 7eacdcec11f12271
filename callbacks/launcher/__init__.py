"""`i2am-debug run`: an unmodified training script with the callback attached. Knows Accelerate and diffusers, no one script."""
