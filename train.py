"""Train a Neural ODE, as ``trueode train`` does. ``python train.py --help`` lists the options."""

import sys

try:
    from trueode.cli.main import train_script
except ModuleNotFoundError as missing:
    sys.exit(
        f"train.py: {missing.name} is not installed: run `make train`, or `pip install -e .` and "
        "use that Python."
    )

if __name__ == "__main__":
    sys.exit(train_script())
