"""Install exactly the lower bounds of requirements.txt in a fresh environment, and see that everything works there.

    python benchmarks/lower_bounds.py [--python python3.10] [--folder DIR] [--tests tests/test_wfl.py …]

pip installs the newest versions, so that nobody ever tries the oldest ones that requirements.txt promises. This makes a
virtual environment with --python, installs every `name>=version` as `name==version`, then trains, tests and exports a
tiny model there, and runs the quick part of the tests. It takes some minutes and about 6 GB. Prints what it saw and
writes benchmarks/results/lower_bounds.json. Exit code 1 where something failed. Needs nothing but Python itself.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
TESTS = (
    "tests/test_dfdnet.py", "tests/test_wfl.py", "tests/test_main.py", "tests/TemporalModule", "tests/API/clips",
    "tests/API/datasets", "tests/API/evaluation", "tests/API/deploy", "tests/API/speed",
    *(f"tests/API/run/test_{name}.py" for name in ("checkpoint", "lock", "output", "progress", "recorder", "weights")),
)  # fmt: skip
TINY = (
    "--dataname", "digits", "--in_shape", "4", "1", "32", "32", "--out_shape", "4", "1", "32", "32", "--hid_S", "4",
    "--layer_config", "1", "1", "1", "1", "--segments", "2", "4", "--epochs", "1", "--device", "cpu",
)  # fmt: skip


def lower_bounds(requirements: Path) -> list[str]:
    """["name==version", …] of the lines "name>=version" of a requirements file. Raises SystemExit for other lines."""
    pins = []
    for line in requirements.read_text("utf-8").splitlines():
        text = line.partition("#")[0].strip()
        if text and not text.startswith("-"):
            bound = re.fullmatch(r"([\w.-]+)\s*>=\s*([\w.]+)(\s*;.*)?", text)
            if not bound:
                raise SystemExit(f"{requirements}: '{text}' has no lower bound, or more than one")
            pins.append(f"{bound[1]}=={bound[2]}{bound[3] or ''}")
    return pins


def run() -> int:
    """Install, try, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the Python to try them with")
    parser.add_argument("--folder", type=Path, help="where to make the environment, and keep it; one there is used")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="what pytest runs there")
    parser.add_argument("--output", type=Path, default=REPO / "benchmarks/results/lower_bounds.json")
    args = parser.parse_args()
    pins = lower_bounds(REPO / "requirements.txt")
    pytest = [pin for pin in lower_bounds(REPO / "requirements-dev.txt") if pin.startswith("pytest==")]
    with tempfile.TemporaryDirectory() as temporary:
        folder, results = args.folder or Path(temporary), f"{temporary}/results"
        python = str(folder / "venv/bin/python")
        best = f"{results}/digits/checkpoints/best.pth"
        main = [python, "main.py"]
        steps = {
            "environment": [args.python, "-m", "venv", str(folder / "venv")],
            "install": [python, "-m", "pip", "install", "--quiet", *pins, *pytest],
            "help": [*main, "-h"],
            "train and test": [*main, *TINY, "--res_dir", results],
            "predict": [*main, "predict", "--ckpt", best, "--input", f"{temporary}/clip.npy",
                        "--output", f"{temporary}/next.mp4"],
            **{f"export {kind}": [*main, "export", "--ckpt", best, "--output", f"{temporary}/model.{kind}"]
               for kind in ("safetensors", "onnx", "pt2")},
            "tests": [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *args.tests],
        }  # fmt: skip
        failed, seconds = [], {}
        for name, command in steps.items():
            if name == "predict":
                make = f"import numpy; numpy.save('{temporary}/clip.npy', numpy.zeros((8, 32, 32), numpy.uint8))"
                subprocess.run([python, "-c", make], check=True)
            began = time.monotonic()
            environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
            done = subprocess.run(
                command, cwd=REPO, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            seconds[name] = round(time.monotonic() - began, 1)
            lines = done.stdout.strip().splitlines()
            # Some exports need a newer PyTorch; that is said in one line, and no promise is broken.
            refused = done.returncode == 2 and name.startswith("export") and "is known to" in lines[-1]
            outcome = "refused" if refused else "failed" if done.returncode else "works"
            print(f"{name:<20}{seconds[name]:7.1f} s  {outcome}", flush=True)
            if outcome == "refused":
                print(lines[-1], flush=True)
            if outcome == "failed":
                failed.append(name)
                print("\n".join(lines[-40:]), flush=True)
                if name in ("environment", "install"):
                    return 1
        installed = subprocess.run([python, "-m", "pip", "list", "--format", "json"], capture_output=True, text=True)
        version = subprocess.run([python, "-V"], capture_output=True, text=True).stdout.split()[-1]
    packages = {package["name"]: package["version"] for package in json.loads(installed.stdout)}
    result = {"date": date.today().isoformat(), "python": version, "bounds": pins, "packages": packages}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result | {"seconds": seconds, "failed": failed}, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(run())
