"""`i2am-debug doctor`: what can be seen of a pipeline and its pairs, what can't be and why, and what looking costs."""
