"""The same gate as a test: `pytest examples/ci/test_reference.py --i2am-baseline baseline.safetensors`.

Needs `pytest_plugins = ["i2am_debug.pytest_plugin"]` in the conftest.py at the root of your tests, or, on the command line,
`-p i2am_debug.pytest_plugin`.
"""


def test_the_model_still_uses_its_reference(i2am_regression):
    i2am_regression.check("runs/finetune", max_drop={"reference_gap": "20%"})
