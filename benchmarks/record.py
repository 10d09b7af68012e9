"""How every benchmark keeps its result: one JSON file, with the date and what it was measured on."""

import argparse
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import torch

from API.run.environment import environment
from API.run.files import write_json

RESULTS = Path(__file__).parent / "results"


def write_result(path: Path, result: Mapping | Sequence, seed: int) -> None:
    """Write {"date", "environment", "seed", "result"} to path; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"date": date.today().isoformat(), "environment": environment(), "seed": seed}
    write_json(path, {**about, "result": result})


def check_device(parser: argparse.ArgumentParser, name: str) -> None:
    """End with a line where --device asks for a GPU and there is none."""
    if name.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {name}: PyTorch finds no GPU here")
