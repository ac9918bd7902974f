"""Any part of the library may be the first import of a program."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("first", ["import keras_exfm.layers", "from keras_exfm import metrics"])
def test_first_import_registers_all_classes(first):
    program = (
        f"{first}\nimport keras\n"
        "for name in ('Wukong', 'WukongLayer', 'RowwiseAdagrad', 'TeacherCrossentropy'):\n"
        "    assert keras.saving.get_registered_object(f'keras_exfm>{name}'), name\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
