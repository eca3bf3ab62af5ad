#!/usr/bin/env python3
"""Compares trunkd's engine with ONNX Runtime and PyTorch; engine.sh prepares everything and calls this.

Each contender is one process that lives through the whole run and answers a case per line (see
engine_bench.c). A round asks every contender for every case, one after the other, so that a slow
minute of the machine falls on all of them; the table shows medians over the rounds, and ratios are
taken within a round: above 1, trunkd is faster. A contender that is missing is "not installed".
"""
import argparse
import csv
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time

CASES = [
    "infer resnet18 224 1", "infer resnet18 224 8", "infer resnet50 224 1", "infer resnet50 224 8",
    "train resnet18 64 64", "train resnet18 64 128", "train resnet20 32 128", "train resnet32 32 128",
]
# What the design asks for (section 7): the peer and the ratio to reach.
TARGETS = {
    "infer resnet18 224 1": ("onnxruntime", 1.4), "infer resnet18 224 8": ("onnxruntime", 1.6),
    "train resnet18 64 64": ("pytorch", 1.4), "train resnet18 64 128": ("pytorch", 1.4),
    "train resnet32 32 128": ("pytorch", 1.8),
}


class Contender:
    def __init__(self, name, command, env):
        self.name, self.process, self.times = name, None, {}
        if command:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.DEVNULL, text=True, env=env)
        self.version = self.ask("version") or "not installed"

    def ask(self, line):
        """The answer's words after `ok`, or None."""
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except (AttributeError, BrokenPipeError):
            return None
        return answer[3:].strip() if answer.startswith("ok ") else None

    def measure(self, case, seconds):
        answer = self.ask(f"{case} {seconds}")
        self.times.setdefault(case, []).append(float(answer.split()[0]) if answer else None)

    def median(self, case):
        times = self.times[case]
        return None if None in times else statistics.median(times)

    def close(self):
        if self.process:
            self.process.stdin.close()
            self.process.wait()


def cpu_model():
    with open("/proc/cpuinfo") as f:
        return next((l.split(":")[1].strip() for l in f if l.startswith("model name")),
                    platform.machine())


def header(contenders, args):
    date = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
    load = os.getloadavg()[0]
    busy = "; the machine is busy: do not trust the ratios" if load > 0.5 else ""
    lines = [f"{date}, {cpu_model()}, {os.cpu_count()} cores, {args.threads} threads each, fp32",
             f"{args.rounds} rounds of {args.seconds} s per case; milliseconds per call",
             f"load average before the run {load:.1f}{busy}"]
    return lines + [f"{c.name}: {c.version}" for c in contenders]


def ratio(ours, peer, case):
    pairs = zip(ours.times[case], peer.times[case])
    ratios = [b / a for a, b in pairs if a and b]
    return statistics.median(ratios) if ratios else None


def show(value, form):
    return "-" if value is None else form % value


def table(contenders, cases):
    ours, peers = contenders[0], contenders[1:]
    print(f"\n{'case':24}" + "".join(f"{c.name:>13}" for c in contenders)
          + "".join(f"{'x ' + p.name:>15}" for p in peers) + "   target")
    for case in cases:
        row = f"{case:24}" + "".join(f"{show(c.median(case), '%.2f'):>13}" for c in contenders)
        row += "".join(f"{show(ratio(ours, p, case), '%.2f'):>15}" for p in peers)
        print(row + ("   %s x %.1f" % TARGETS[case] if case in TARGETS else ""))


def write_csv(path, head, contenders, cases):
    with open(path, "w", newline="") as f:
        f.writelines(f"# {line}\n" for line in head)
        out = csv.writer(f)
        out.writerow(["case", "contender", "round", "milliseconds"])
        for case in cases:
            for c in contenders:
                out.writerows([case, c.name, i, ms] for i, ms in enumerate(c.times[case]) if ms)


def main():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--engine", required=True, help="the engine_bench program")
    p.add_argument("--torch", help="a python that has torch")
    p.add_argument("--ort", help="folder with node_modules/onnxruntime-node and onnx/")
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--seconds", type=float, default=2.0, help="per case, contender and round")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--only", default="", help="cases that contain this, such as 'infer' or resnet18")
    p.add_argument("--csv", help="write every round's numbers here")
    args = p.parse_args()
    here = os.path.dirname(os.path.abspath(__file__))
    env = dict(os.environ, BENCH_THREADS=str(args.threads), OMP_NUM_THREADS=str(args.threads))
    ort = args.ort and ["node", os.path.join(here, "peer_ort.js"), os.path.join(args.ort, "onnx")]
    if ort:
        env["NODE_PATH"] = os.path.join(args.ort, "node_modules")
    torch = args.torch and [args.torch, os.path.join(here, "peer_torch.py")]
    contenders = [Contender("trunkd", [args.engine], env), Contender("onnxruntime", ort, env),
                  Contender("pytorch", torch, env)]
    cases = [c for c in CASES if args.only in c]
    head = header(contenders, args)
    print("\n".join(head), flush=True)
    for number in range(args.rounds):
        for case in cases:
            for contender in contenders:
                contender.measure(case, args.seconds)
                time.sleep(0.2)  # until the threads of the last one have stopped spinning
        print(f"round {number + 1} of {args.rounds} done", file=sys.stderr, flush=True)
    table(contenders, cases)
    if args.csv:
        write_csv(args.csv, head, contenders, cases)
        print(f"\nevery round's numbers: {args.csv}")
    for contender in contenders:
        contender.close()


main()
