"""Answer a question about the method by training: named variants, several seeds, one budget.

    python benchmarks/study.py --list                          the studies, and how much of each is done
    python benchmarks/study.py small --runs ../study           train what is missing, then print the table
    python benchmarks/study.py small --only SimVP-gSTA TAU --dry_run

The studies are data, in studies.py. Every run is one of main.py, by its own training, checkpoints and test; a run that
was stopped or killed goes on where it stood (exit code 75: start again). On a CPU two single-threaded runs go side by
side, on GPUs one on each. Scores, commit, hardware and date of every run that has ended go to
benchmarks/results/study_<name>.json; the table and a figure are drawn from it. What stands there, or in another study's
file, is not run again; --output and --runs of other folders start anew.
"""

import argparse
import datetime
import hashlib
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import core
import main
from API.evaluation.summary import work
from API.presets import PRESETS
from API.run.environment import environment
from API.run.files import write_json
from API.run.interrupt import RESUME_ME
from API.run.recorder import read_records
from benchmarks.record import RESULTS
from benchmarks.studies import STUDIES, Study, Variant
from benchmarks.study_report import draw, table
from benchmarks.variants import changed


class Run:
    """One training: a variant with a seed. key is of all that affects its result, but for the code's commit: the
    preset's values and the flags over them, changes and budget."""

    def __init__(self, study: Study, variant: Variant, seed: int) -> None:
        self.study, self.variant, self.seed = study, variant, seed
        self.flags = [*shlex.split(study.flags), *shlex.split(variant.flags), "--seed", str(seed)]
        _, _, given = main.parse(self.flags)
        settings = PRESETS[given.get("dataname", "mmnist")] | given
        settings = {flag: value for flag, value in settings.items() if flag not in ("num_workers", "val_batch_size")}
        what = json.dumps([settings, list(variant.changes), study.minutes], sort_keys=True)
        self.key = hashlib.blake2b(what.encode(), digest_size=4).hexdigest()
        self.name = f"{variant.name.replace(' ', '_')}-{seed}-{self.key}"

    def command(self, runs: Path, name: str, flags: Sequence[str]) -> list[str]:
        """What trains it, or goes on with it."""
        where = ["--res_dir", str(runs), "--ex_name", name, "--resume", "auto", "--save_every", "2m"]
        program = str(Path(__file__).with_name("variants.py"))
        return [sys.executable, program, *self.variant.changes, "--", *self.flags, *flags, *where]

    def step(self, runs: Path, place: Sequence[str]) -> tuple[str, list[str]]:
        """(name, command) of what is to be run next: the training, or before it, where the study gives minutes instead
        of epochs, one epoch that measures the pace. place: flags of where."""
        if self.study.minutes is None:
            return self.name, self.command(runs, self.name, place)
        pace = f"pace-{self.name}"
        measured = read_records(runs / pace / "metrics.jsonl")[0]
        if not measured:
            return pace, self.command(runs, pace, ["--epochs", "1", *place])
        epochs = max(1, round(self.study.minutes * 60 / measured[-1]["seconds"]))
        return self.name, self.command(runs, self.name, ["--epochs", str(epochs), *place])

    def result(self, runs: Path) -> dict | None:
        """Its row, once it is tested."""
        folder = runs / self.name
        if not (folder / "test.json").is_file():
            return None
        test, history = json.loads((folder / "test.json").read_text()), read_records(folder / "metrics.jsonl")[0]
        validated = [record for record in history if "val_mse" in record]
        best = min(validated, key=lambda record: record["val_mse"])
        on = test["measured_on"]
        return {
            "variant": self.variant.name,
            "seed": self.seed,
            "key": self.key,
            "command": shlex.join(["python", "benchmarks/variants.py", *self.variant.changes, "--", *self.flags]),
            "epochs": history[-1]["epoch"],
            "minutes": sum(record["seconds"] for record in history) / 60,
            "validation": {metric: best[f"val_{metric}"] for metric in self.study.metrics},
            "test": {metric: test["strict"]["model"][metric]["mean"] for metric in self.study.metrics},
            "curve": [[record["epoch"], record["val_mse"], record["val_ssim"]] for record in validated],
            "filter": validated[-1]["filter"],
            "git_commit": on["git_commit"],
            "hardware": on["gpu"] or f"{on['cpu']}, {on['threads']} thread",
            "precision": on["precision"],
            "torch": on["torch"],
            "date": on["date"],
        } | cost_of(self)


def cost_of(run: Run) -> dict[str, int]:
    """Parameters and multiply-adds of a sequence."""
    _, defaults, given = main.parse(run.flags)
    config = SimpleNamespace(**defaults | given)
    with changed(run.variant.changes):
        return work(lambda: core.build_model(config), config.in_shape)


# Running -------------------------------------------------------------------------------------------------------------


class Pool:
    """Runs side by side: one a GPU, or so many single-threaded ones on the CPU. Stops them all when asked to stop."""

    def __init__(self, workers: int, logs: Path, data_root: str) -> None:
        self.logs, self.data_root, self.stopped, self.failed = logs, ["--data_root", data_root], False, []
        gpus = torch.cuda.device_count()
        self.free = [["--gpu", str(k)] for k in range(gpus)] or [["--device", "cpu"] for _ in range(workers)]
        self.running: dict[subprocess.Popen, tuple[Run, str, list[str]]] = {}
        logs.mkdir(parents=True, exist_ok=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.stop)

    def stop(self, *_) -> None:
        """Ask every run to save itself and stop."""
        self.stopped = True
        for process in self.running:
            process.terminate()

    def start(self, run: Run, runs: Path) -> None:
        """Train run, or measure its pace, in a process of its own."""
        place = self.free.pop()
        name, command = run.step(runs, place + self.data_root)
        print(f"{time.strftime('%H:%M:%S')}  {name}  {shlex.join(place)}", flush=True)
        self.running[self.launch(command, run.name)] = (run, name, place)

    def launch(self, command: Sequence[str], name: str) -> subprocess.Popen:
        """Start a process whose output goes to a log."""
        threads = {} if torch.cuda.is_available() else {"OMP_NUM_THREADS": "1"}
        with (self.logs / f"{name}.log").open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | threads, start_new_session=True)

    def wait(self) -> tuple[Run, bool]:
        """The next run that ends, well or not; and whether only its pace has been measured, and it is to be trained."""
        while True:
            for process, (run, name, place) in list(self.running.items()):
                if process.poll() is not None:
                    del self.running[process]
                    self.free.append(place)
                    stopped = (-signal.SIGTERM,) if self.stopped else ()  # before it could save itself
                    if process.returncode not in (0, RESUME_ME, *stopped):
                        self.failed.append(f"{name} (exit code {process.returncode}, {self.logs / run.name}.log)")
                    return run, name != run.name and process.returncode == 0
            time.sleep(0.5)


def train_missing(missing: Sequence[Run], args: argparse.Namespace, done) -> Pool:
    """Run what is missing; done(run) after each."""
    pool, left, runs = Pool(args.workers, args.runs / "logs", args.data_root), list(missing), args.runs
    while (left and not pool.stopped) or pool.running:
        while left and pool.free and not pool.stopped:
            pool.start(left.pop(0), runs)
        run, measured = pool.wait()
        if measured:
            left.insert(0, run)
        else:
            done(run)
    return pool


# Results -------------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[dict]:
    """The runs that a result file holds."""
    return json.loads(path.read_text())["runs"] if path.is_file() else []


def current_rows(study: Study, path: Path) -> dict[str, dict]:
    """The study's rows in a result file, by key; says how many others there are."""
    named, stored = {variant.name: variant for variant in study.variants}, read_rows(path)
    known = [row for row in stored if row["variant"] in named]
    rows = {row["key"]: row for row in known if row["key"] == Run(study, named[row["variant"]], row["seed"]).key}
    if len(rows) < len(stored):
        gone = len(stored) - len(rows)
        print(f"{gone} runs of {path} left out: they are of variants or settings that the study has no more")
    return rows


def run_study(name: str, args: argparse.Namespace) -> int:
    """Run what is missing, and report. The exit code."""
    study, path = STUDIES[name], args.output / f"study_{name}.json"
    chosen = [v for v in study.variants if not args.only or v.name in args.only]
    wanted = [Run(study, variant, seed) for seed, variant in itertools.product(args.seeds or study.seeds, chosen)]
    rows = current_rows(study, path)
    others = [row for other in args.output.glob("study_*.json") for row in read_rows(other)]
    elsewhere = {row["key"]: row for row in sorted(others, key=lambda row: row["date"])}  # the newest of equals
    for run in wanted:
        if run.key in elsewhere:
            rows.setdefault(run.key, elsewhere[run.key] | {"variant": run.variant.name})

    def save() -> None:
        if args.dry_run:
            return
        write_json(path, {"question": study.question, "flags": study.flags, "minutes": study.minutes,
                          "updated": datetime.date.today().isoformat(), "runs": list(rows.values())})  # fmt: skip

    def keep(run: Run) -> None:
        if row := run.result(args.runs):
            rows[run.key] = row
            save()
            print(f"{run.name}: " + "  ".join(f"{k} {v:.4g}" for k, v in row["test"].items()), flush=True)

    args.output.mkdir(parents=True, exist_ok=True)
    for run in wanted:
        if run.key not in rows:
            keep(run)
    missing = [run for run in wanted if run.key not in rows]
    if args.dry_run:
        for run in missing:
            print(shlex.join(run.command(args.runs, run.name, [])))
        return 0
    pool = train_missing(missing, args, keep) if missing and not args.report else None
    if rows:
        if list(rows.values()) != read_rows(path):
            save()
        print(f"\n{study.question}\n\n{table(study, list(rows.values()))}")
        commits = {row["git_commit"] for row in rows.values()} - {environment()["git_commit"]}
        if commits:
            told = ", ".join(sorted(f"{commit}"[:7] + f"{commit}"[40:] for commit in commits))
            print(f"\nRuns of other commits: {told}. They stay as they are when the code changes; to have them anew, "
                  f"remove {path} and {args.runs}.")  # fmt: skip
        draw(study, list(rows.values()), path.with_suffix(".png"))
    if pool is None:
        return 0
    for line in pool.failed:
        print(f"failed: {line}", file=sys.stderr)
    return 1 if pool.failed else RESUME_ME if pool.stopped else 0


def run(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help="which; default: all but those for a GPU")
    parser.add_argument("--list", action="store_true", help="name the studies and their runs")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="these variants alone")
    parser.add_argument("--seeds", type=int, nargs="+", help="these seeds (default: the study's)")
    parser.add_argument("--dry_run", action="store_true", help="print the commands that are missing")
    parser.add_argument("--report", action="store_true", help="run nothing: table and figure of what is there")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side on a CPU (%(default)s)")
    parser.add_argument("--data_root", default="data", help="folder of the data sets (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("results/study"), help="folder of the runs (%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results (%(default)s)")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.studies if name not in (*STUDIES, "gpu")]:
        parser.error(f"unknown study {unknown[0]}: choose from {', '.join(STUDIES)}")
    if args.list:
        for name, study in STUDIES.items():
            done = len(read_rows(args.output / f"study_{name}.json"))
            print(f"{name}: {study.question} ({done} of {len(study.variants) * len(study.seeds)} runs)")
            print("".join(f"    {v.name}: {' '.join((*v.changes, v.flags))}\n" for v in study.variants), end="")
        return 0
    if args.studies in ([], ["gpu"]):
        args.studies = [name for name in STUDIES if name.startswith("gpu") == bool(args.studies)]
    names = {variant.name for name in args.studies for variant in STUDIES[name].variants}
    if unknown := [name for name in args.only or () if name not in names]:
        parser.error(f"--only {unknown[0]}: these studies have no such variant, see --list")
    for name in args.studies:
        if code := run_study(name, args):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(run())
