"""How every benchmark keeps its result: one JSON file, with the date and what it was measured on."""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from API.run.environment import environment
from API.run.files import write_json

RESULTS = Path(__file__).parent / "results"


def write_result(path: Path, result: Mapping | Sequence, seed: int) -> None:
    """Write {"date", "environment", "seed", "result"} to path; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"date": date.today().isoformat(), "environment": environment(), "seed": seed}
    write_json(path, {**about, "result": result})
