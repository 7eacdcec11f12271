"""The same gate as a test:

pytest -p i2am_debug.pytest_plugin examples/ci/test_reference.py --i2am-baseline baseline.safetensors

(or `pytest_plugins = ["i2am_debug.pytest_plugin"]` in the conftest.py of pytest's root folder, instead of -p).
"""


def test_the_model_still_uses_its_reference(i2am_regression):
    i2am_regression.check("runs/finetune", max_drop={"reference_gap": "20%"})
