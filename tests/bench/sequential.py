#!/usr/bin/env python3
"""Sequential learning on real photographs: what each new tenant costs those who are there.

Runs trunkd-trainer job after job, as the server would, and prints every figure twice: on the server's
validation split, which the search and the gate have seen, and on the untouched test photographs, which
no job ever sees. Points of accuracy; medians over the seeds.

  cars     Alice's car bodies, then Bob's car colours (ResNet-18, 64 px); beside plain fine-tuning
  five     five heads on one trunk: bodies, colours, vehicle types, makes, automatic colours; the three
           label sets of the same photographs get a third of them each (by image number)
  cifar100 ten tasks of ten classes each (ResNet-32), without exemplars: kd+ewc, kd, ewc, probe
  tenants  ten tenants with ten data sets in a row (ResNet-18, 64 px)
"""
import argparse
import csv
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("scenario", choices=["cars", "five", "cifar100", "tenants"])
    p.add_argument("--data", required=True, metavar="DIR",
                   help="the data sets: NAME.tar.gz, or unpacked NAME/train/CLASS/IMAGE and NAME/test/...")
    p.add_argument("--seeds", default="1,2,3", metavar="LIST", help="comma separated (%(default)s)")
    p.add_argument("--set", action="append", default=[], metavar="K=V",
                   help="override a hyper-parameter of the default recipe; may be repeated")
    p.add_argument("--threads", type=int, default=0, metavar="N", help="0: one per core (%(default)s)")
    p.add_argument("--build", default=os.path.join(HERE, "..", "..", "build"), metavar="DIR",
                   help="where trunkd-trainer was built (build)")
    p.add_argument("--out", metavar="DIR", help="work folder, kept: what is there is not run again")
    p.add_argument("--csv", metavar="FILE", help="write every measured figure there")
    return p.parse_args()


class Bench:
    """The programs, the data, and what was measured."""

    def __init__(self, args):
        self.args = args
        self.trainer = os.path.join(args.build, "bin", "trunkd-trainer")
        if not os.access(self.trainer, os.X_OK):
            sys.exit(f"sequential.py: no {self.trainer}: build first, or give --build")
        self.temporary = None if args.out else tempfile.TemporaryDirectory()
        self.out = args.out or self.temporary.name
        os.makedirs(self.out, exist_ok=True)
        self.set = {k: float(v) for k, v in (s.split("=", 1) for s in args.set)}
        self.rows = []

    def run(self, *command):
        done = subprocess.run([self.trainer, *command], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"sequential.py: trunkd-trainer {' '.join(command)}: {done.stderr.strip()[-400:]}")
        return done.stdout

    def tree(self, name):
        """The folder with train/ and test/ of a data set, unpacked if need be."""
        for at in (self.args.data, self.out):
            for path in (os.path.join(at, name), *(os.path.join(at, group, name) for group in ("cars", "fashion"))):
                if os.path.isdir(os.path.join(path, "train")):
                    return path
        archive = next((a for a in (name, name.split("-")[0])
                        if os.path.exists(os.path.join(self.args.data, a + ".tar.gz"))), None)
        if archive is None:
            sys.exit(f"sequential.py: --data: neither {name}/train nor {name}.tar.gz in {self.args.data}")
        subprocess.run(["tar", "xzf", os.path.join(self.args.data, archive + ".tar.gz"), "-C", self.out], check=True)
        return self.tree(name)

    def packs(self, task):
        """(train, test) packs of a Task, made once."""
        made = []
        for part in ("train", "test"):
            pack = os.path.join(self.out, f"{task.name}-{part}.pack")
            if not os.path.exists(pack):
                with tempfile.TemporaryDirectory() as links:
                    for label, files in task.images(os.path.join(self.tree(task.source), part), part):
                        os.makedirs(os.path.join(links, label))
                        for f in files:
                            os.symlink(f, os.path.join(links, label, os.path.basename(f)))
                    self.run("pack", links, pack)
            made.append(pack)
        return made

    def accuracy(self, version, pack, head):
        return 100 * json.loads(self.run("eval", version, pack, head))["accuracy"]

    def note(self, **row):
        self.rows.append(row)

    def write_csv(self):
        if not self.args.csv:
            return
        keys = list(dict.fromkeys(k for row in self.rows for k in row))
        with open(self.args.csv, "w", newline="") as f:
            w = csv.DictWriter(f, keys)
            w.writeheader()
            w.writerows(self.rows)


class Task:
    """One tenant's data set: a source tree, of which it may have a share of the photographs or classes."""

    def __init__(self, source, share=None, of=1, classes=None, most=None, name=None):
        self.source, self.share, self.of, self.classes, self.most = source, share, of, classes, most
        self.name = name or source + ("" if share is None else f"-{share + 1}of{of}")
        self.head = f"{self.name}/head"

    def images(self, folder, part):
        """(label, files): train photographs are divided among tenants, test photographs are not."""
        labels = sorted(os.listdir(folder))
        for label in labels if self.classes is None else labels[self.classes]:
            at = os.path.join(folder, label)
            files = sorted(os.path.join(at, f) for f in os.listdir(at))
            if self.share is not None and part == "train":
                files = [f for f in files if self.number(f) % self.of == self.share]
            if self.most and part == "train":
                files = files[: self.most]
            if files:
                yield label, files

    @staticmethod
    def number(path):
        digits = re.findall(r"\d+", os.path.basename(path))
        return int(digits[-1]) if digits else 0


class Chain:
    """Versions in a row, as one server would commit them."""

    def __init__(self, bench, seed, arch, preproc, label=""):
        self.bench, self.seed, self.arch, self.preproc = bench, seed, arch, preproc
        self.folder = os.path.join(bench.out, f"seed{seed}{label}")
        self.version, self.validations, self.tasks = None, [], []

    def fork(self, label):
        other = Chain(self.bench, self.seed, self.arch, self.preproc)
        other.folder = os.path.join(self.folder, label)
        other.version, other.validations, other.tasks = self.version, list(self.validations), list(self.tasks)
        return other

    def job(self, task, recipe, settings=None, gate=True, keep=True):
        """Runs one job (unless it has been run); commits it to the chain if asked. Its result."""
        train, _ = self.bench.packs(task)
        folder = os.path.join(self.folder, f"{len(self.tasks) + 1}-{task.name}-{recipe}{'' if gate else '-bare'}")
        result = os.path.join(folder, "result.json")
        if not os.path.exists(result):
            os.makedirs(folder, exist_ok=True)
            with open(os.path.join(folder, "job.json"), "w") as f:
                json.dump({"job": task.name, "base": self.version, "arch": self.arch, "preproc": self.preproc,
                           "data": train, "head": task.head, "tolerance": 1.0, "retention": "validation",
                           "validations": self.validations, "recipe": recipe, "set": settings or {},
                           "fallback": "probe", "gate": gate, "seed": self.seed,
                           "threads": self.bench.args.threads}, f)
            print(f"  seed {self.seed}: {task.name} by {recipe}{'' if gate else ', no gate'} ...", file=sys.stderr)
            with open(os.path.join(folder, "events"), "w") as events:
                done = subprocess.run([self.bench.trainer, "--normal-priority", os.path.join(folder, "job.json")],
                                      stdout=events, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(f"sequential.py: {folder}: {done.stderr.strip()[-400:]}")
        with open(result) as f:
            r = json.load(f)
        r["version"], r["took"] = os.path.join(folder, "candidate.safetensors"), sum(r["seconds"].values())
        if keep:
            self.version = r["version"]
            self.tasks.append(task)
            self.validations.append({"head": task.head, "pack": os.path.join(folder, "validation.pack")})
        return r

    def test(self, task, version=None):
        return self.bench.accuracy(version or self.version, self.bench.packs(task)[1], task.head)

    def row(self, version=None):
        return [self.test(t, version) for t in self.tasks]


def validation(result, head):
    return 100 * next(v["accuracy"] for v in result["validations"] if v["head"] == head)


def median(values):
    return statistics.median(values)


def show(title, columns, rows):
    print(title)
    widths = [max(len(c), *(len(r[i]) for r in rows)) for i, c in enumerate(columns)]
    for r in [columns, *rows]:
        print("  " + "  ".join(x.ljust(w) if i == 0 else x.rjust(w) for i, (x, w) in enumerate(zip(r, widths))))


SQUASH_64 = {"mode": "squash", "resize": 73, "crop": 64}
CIFAR_32 = {"mode": "short", "resize": 32, "crop": 32}


def grow(bench, tasks, scenario, seeds, epochs):
    """A chain of tasks for each seed; beside every job, plain fine-tuning and the probe from the same base.

    Prints, for each head, its test and validation accuracy when it was born, at its best, and at the end, and
    what would be left of it on the test photographs if the next tenant's plain fine-tuning were committed."""
    table = {t.name: [] for t in tasks}
    for seed in seeds:
        chain = Chain(bench, seed, "resnet18", SQUASH_64)
        history = []  # test row after each job
        born, bare = {}, {}
        for i, task in enumerate(tasks):
            if i == 0:
                r = chain.job(task, "scratch", {"epochs": epochs})
                born[task.name] = {"plain": chain.test(task), "probe": chain.test(task), "outcome": "scratch"}
            else:
                aside = chain.fork("aside")
                plain = aside.job(task, "finetune", gate=False, keep=False)
                probe = aside.job(task, "probe", keep=False)
                r = chain.job(task, "kd+ewc", bench.set)
                bare[tasks[i - 1].name] = aside.test(tasks[i - 1], plain["version"])
                born[task.name] = {"plain": chain.test(task, plain["version"]),
                                   "probe": chain.test(task, probe["version"]), "outcome": r["outcome"]}
            born[task.name]["validation"] = validation(r, task.head)
            history.append(chain.row())
            bench.note(scenario=scenario, seed=seed, job=i + 1, task=task.name,
                       seconds=round(r["took"]), **born[task.name],
                       **({"plain " + tasks[i - 1].name: bare[tasks[i - 1].name]} if i else {}),
                       **{f"test {t.name}": x for t, x in zip(chain.tasks, history[-1])},
                       **{f"validation {v['head']}": 100 * v["accuracy"] for v in r["validations"]})
        for j, task in enumerate(tasks):
            ours = [row[j] for row in history[j:]]
            table[task.name].append({"born": ours[0], "best": max(ours), "end": ours[-1], "lowest": min(ours),
                                     "end validation": validation(r, task.head),
                                     "bare": bare.get(task.name, float("nan")), **born[task.name]})
    rows = []
    for task in tasks:
        m = {k: median([s[k] for s in table[task.name]]) for k in table[task.name][0] if k != "outcome"}
        rows.append([task.name, *(f"{m[k]:.1f}" for k in ("probe", "plain", "born", "best", "end")),
                     f"{median([s['end'] - s['best'] for s in table[task.name]]):+.1f}",
                     f"{median([s['born'] - s['plain'] for s in table[task.name]]):+.1f}",
                     f"{m['bare']:.1f}".replace("nan", "-"), f"{m['validation']:.1f}", f"{m['end validation']:.1f}",
                     " ".join(s["outcome"] for s in table[task.name])])
    show(f"{scenario}: accuracy on the test photographs, medians of seeds {','.join(map(str, seeds))}",
         ["head", "probe", "plain", "born", "best", "end", "end-best", "born-plain", "after plain", "val born", "val end", "outcomes"],
         rows)
    gaps = [median([s["born"] - s["plain"] for s in table[t.name]]) for t in tasks[1:]]
    worst = min(median([s["end"] - s["best"] for s in table[t.name]]) for t in tasks)
    print(f"  worst head at the end: {worst:+.1f} of its best; new heads against plain fine-tuning: "
          f"mean {statistics.mean(gaps):+.1f}")


def cifar100(bench, seeds):
    """R[i][j] for each method, all from the same first task."""
    tasks = [Task("cifar100", classes=slice(10 * i, 10 * i + 10), name=f"cifar100-{i + 1:02}") for i in range(10)]
    rows = []
    for seed in seeds:
        first = Chain(bench, seed, "resnet32", CIFAR_32)
        first.job(tasks[0], "scratch", {"epochs": 10})
        for method, gate in (("kd+ewc", True), ("kd", False), ("ewc", False), ("probe", True)):
            chain = first.fork(method)
            matrix = [chain.row()]
            for task in tasks[1:]:
                settings = {"epochs": 10, **(bench.set if method == "kd+ewc" else {})}
                chain.job(task, method, settings, gate=gate)
                matrix.append(chain.row())
            final = matrix[-1]
            acc = statistics.mean(final)
            bwt = statistics.mean(final[j] - matrix[j][j] for j in range(9))
            rows.append([f"{method}{' (gate)' if gate else ''}", str(seed), f"{acc:.2f}", f"{bwt:+.2f}",
                         f"{max(max(m[j] for m in matrix[j:]) - final[j] for j in range(9)):.1f}"])
            bench.note(scenario="cifar100", seed=seed, method=method, acc=acc, bwt=bwt,
                       **{f"R{i + 1},{j + 1}": x for i, m in enumerate(matrix) for j, x in enumerate(m)})
    show("cifar100 in ten tasks, ResNet-32, 10 epochs each: accuracy within the task on its test images",
         ["method", "seed", "ACC", "BWT", "worst forgetting"], rows)


CARS = [Task("cars-body9"), Task("carcolor9")]
FIVE = [Task("cars-body9", 0, 3), Task("carcolor9"), Task("vehicletype6"), Task("cars-make49", 1, 3),
        Task("cars-color10-auto", 2, 3)]
TENANTS = [Task("cars-body9", 0, 3), Task("carcolor9"), Task("vehicletype6"), Task("cars-make49", 1, 3),
           Task("fashion-type20", 0, 3), Task("cars-color10-auto", 2, 3), Task("cifar10", most=300),
           Task("fashion-color14", 1, 3), Task("fashionmnist10", most=300), Task("fashion-usage4", 2, 3)]


def main():
    args = arguments()
    bench = Bench(args)
    seeds = [int(s) for s in args.seeds.split(",")]
    if args.scenario == "cifar100":
        cifar100(bench, seeds)
    else:
        tasks = {"cars": CARS, "five": FIVE, "tenants": TENANTS}[args.scenario]
        grow(bench, tasks, args.scenario, seeds, 15 if args.scenario == "cars" else 25)
    bench.write_csv()


if __name__ == "__main__":
    main()
