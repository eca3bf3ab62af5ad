#!/usr/bin/env python3
"""Compares trunkd's engine with ONNX Runtime and PyTorch; engine.sh prepares everything and calls this.

A case is KIND ARCH PX BATCH THREADS PRECISION. Each contender is one process that lives through the
whole run and answers a case per line (see engine_bench.c). A round asks every contender for every case,
one after the other, so that a slow minute of the machine falls on all of them. The table shows medians
over the rounds; ratios are taken within a round, and their median is shown: above 1, trunkd is faster.

    x onnxruntime, x pytorch    against the peer in fp32
    x 1 thread                  against trunkd itself with one thread
    x fp32                      against trunkd itself in fp32

A ratio that the design sets a target for is followed by that target and by pass or MISS. A contender that
is missing is "not installed" and its cells are "-"; what one cannot do is "n/a", with its reason below.
"""
import argparse
import csv
import datetime
import os
import platform
import re
import statistics
import subprocess
import sys
import time

CASES = [
    "infer resnet18 224 1 2 fp32", "infer resnet18 224 8 1 fp32", "infer resnet18 224 8 2 fp32",
    "infer resnet18 224 8 2 bf16", "infer resnet18 224 8 2 int8", "infer resnet18 224 32 2 fp32",
    "infer resnet50 224 1 2 fp32", "infer resnet50 224 8 1 fp32", "infer resnet50 224 8 2 fp32",
    "infer resnet18 64 1 2 fp32", "infer resnet18 64 32 2 fp32",
    "train resnet18 64 64 1 fp32", "train resnet18 64 64 2 fp32",
    "train resnet18 64 128 1 fp32", "train resnet18 64 128 2 fp32",
    "train resnet18 64 64 2 bf16", "train resnet18 64 128 2 bf16",
    "train resnet20 32 128 1 fp32", "train resnet20 32 128 2 fp32",
    "train resnet32 32 128 1 fp32", "train resnet32 32 128 2 fp32",
]
# By what trunkd is held against (a column of the table) and case: the ratio to reach.
TARGETS = {
    "onnxruntime": {
        "infer resnet18 224 1 2 fp32": 1.4, "infer resnet18 224 8 2 fp32": 1.6,
        "infer resnet18 224 32 2 fp32": 1.6, "infer resnet50 224 8 2 fp32": 1.25,
    },
    "pytorch": {
        "train resnet18 64 64 2 fp32": 1.4, "train resnet18 64 128 2 fp32": 1.4,
        "train resnet32 32 128 2 fp32": 1.8,
        "train resnet18 64 64 2 bf16": 2.0, "train resnet18 64 128 2 bf16": 2.0,
    },
    "1 thread": {
        "infer resnet18 224 8 2 fp32": 1.85, "infer resnet50 224 8 2 fp32": 1.85,
        "train resnet18 64 64 2 fp32": 1.85, "train resnet18 64 128 2 fp32": 1.85,
        "train resnet20 32 128 2 fp32": 1.85, "train resnet32 32 128 2 fp32": 1.85,
    },
    "fp32": {"infer resnet18 224 8 2 bf16": 1.25, "infer resnet18 224 8 2 int8": 1.8},
}
MEMORY_TARGET = 0.7  # at most this share of PyTorch's


def words(case):
    kind, arch, px, batch, threads, precision = case.split()
    return kind, arch, px, batch, int(threads), precision


def in_fp32(case):
    return case.rsplit(" ", 1)[0] + " fp32"


def one_thread(case):
    kind, arch, px, batch, _, precision = case.split()
    return f"{kind} {arch} {px} {batch} 1 {precision}"


def reference(case, column):
    """What the case's ratio in a column is taken against: (contender, case), or None."""
    kind, arch, px, batch, threads, precision = words(case)
    fp32 = in_fp32(case)
    if column == "1 thread":
        single = one_thread(case)
        return ("trunkd", single) if threads > 1 and single in CASES else None
    if column == "fp32":
        return ("trunkd", fp32) if precision != "fp32" else None
    return column, fp32


# --- contenders ---


class Contender:
    """A program that answers a request per line: `ok ...`, or a reason why not."""

    def __init__(self, name, command, env):
        self.name, self.command, self.env = name, command, env
        self.process = None
        self.results = {}  # case: a number per round, None where there was no answer
        self.reasons = {}  # why not: the cases
        self.start()
        self.version = " ".join(self.ask("version") or ["not installed"])

    def start(self):
        if self.command:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, text=True,
                                            stdout=subprocess.PIPE, env=self.env)

    def stop(self):
        if not self.process:
            return
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.process.wait()

    def send(self, request):
        if not self.process:
            return
        try:
            self.process.stdin.write(request + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # then there is no answer either

    def receive(self, about):
        """The words after `ok`, or None; the reason is then kept under `about`."""
        if not self.process:
            return None
        answer = self.process.stdout.readline().strip()
        if answer.startswith("ok "):
            return answer.split()[1:]
        reason = answer.removeprefix("error: ") or "ended without an answer"
        self.reasons.setdefault(reason, {})[about] = True
        return None

    def ask(self, request, about=None):
        self.send(request)
        return self.receive(about or request)

    def keep(self, case, answer):
        self.results.setdefault(case, []).append(float(answer[0]) if answer else None)

    def measure(self, case, request):
        self.keep(case, self.ask(request, case))

    def median(self, case):
        numbers = self.results[case]
        return None if None in numbers else statistics.median(numbers)

    def cell(self, case, form):
        return "-" if not self.process else show(self.median(case), form)


def show(value, form):
    return "n/a" if value is None else form % value


def median_ratio(over, under):
    """The median of the ratios within a round."""
    ratios = [a / b for a, b in zip(over, under) if a and b]
    return statistics.median(ratios) if ratios else None


def print_reasons(contenders):
    for c in contenders:
        for reason, cases in c.reasons.items():
            first, more = next(iter(cases)), len(cases) - 1
            print(f"n/a, {c.name}: {reason} ({first}{f' and {more} more' if more else ''})")


# --- the machine ---


def cpu():
    """A name for people and one for files. Virtual machines say little in `model name`."""
    facts = {}
    with open("/proc/cpuinfo") as f:
        for line in f:
            key, _, value = line.partition(":")
            facts.setdefault(key.strip(), value.strip())
    model = facts.get("model name", platform.machine())
    family, number = facts.get("cpu family", "?"), facts.get("model", "?")
    plain = re.sub(r"\((R|TM)\)| CPU|@.*", "", model, flags=re.I)
    slug = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")
    if family != "?":
        slug += f"-f{family}m{number}"
    return f"{model} (family {family}, model {number})", f"{slug}-{os.cpu_count()}cores"


def measure_peaks(engine, cases):
    """(GFLOP/s, GB/s, % of the time that others took) by number of threads."""
    seconds = 3.0  # a third for each
    peaks = {}
    for threads in sorted({words(case)[4] for case in cases}):
        answer = engine.ask(f"peak {threads} {seconds}")
        if not answer:
            sys.exit("engine.py: engine_bench does not answer")
        peaks[threads] = tuple(map(float, answer))
    return peaks


def header(contenders, peaks, what):
    date = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
    load = os.getloadavg()[0]
    lost = max((peak[2] for peak in peaks.values()), default=0)
    unquiet = load > 0.5 or lost > 1
    lines = [f"{date}, {cpu()[0]}, {os.cpu_count()} cores", what,
             f"load average before the run {load:.1f}{'; the machine is busy: do not trust the numbers' * unquiet}"]
    lines += [f"measured peak, {threads} thread{'s' * (threads > 1)}: "
              f"{gflops:.0f} GFLOP/s fp32, {gbytes:.1f} GB/s; others took {taken:.1f} % of the time"
              for threads, (gflops, gbytes, taken) in peaks.items()]
    return lines + [f"{c.name}: {c.version}" for c in contenders]


def write_csv(args, name, head, rows):
    """rows: names first. The file is called after the machine."""
    if not args.csv:
        return
    os.makedirs(args.csv, exist_ok=True)
    path = os.path.join(args.csv, f"{name}-{cpu()[1]}.csv")
    with open(path, "w", newline="") as f:
        f.writelines(f"# {line}\n" for line in head)
        csv.writer(f, lineterminator="\n").writerows(rows)
    print(f"\nall numbers: {path}")


def round_rows(contenders, cases, unit):
    yield ["case", "contender", "round", unit]
    for case in cases:
        for c in contenders:
            yield from ([case, c.name, i, n] for i, n in enumerate(c.results.get(case, [])) if n)


# --- times ---


def times(args, contenders, selected):
    references = [reference(case, column) for case in selected for column in TARGETS]
    asked = [c for c in CASES if c in selected or c in (r[1] for r in references if r)]
    seconds = args.seconds or (0.5 if args.quick else 2.0)
    peaks = measure_peaks(contenders[0], asked)
    head = header(contenders, peaks,
                  f"{args.rounds} rounds of {seconds} s per case; milliseconds per call")
    print("\n".join(head), flush=True)
    for number in range(args.rounds):
        for case in asked:
            for contender in contenders:
                contender.measure(case, f"{case} {seconds}")
                time.sleep(0.2)  # until the threads of the last one have stopped spinning
        print(f"round {number + 1} of {args.rounds} done", file=sys.stderr, flush=True)
    print_times(contenders, selected)
    write_csv(args, "engine", head, round_rows(contenders, asked, "milliseconds"))


def judged(ratio, target):
    """`1.52 (1.40 pass)`"""
    if target is None:
        return show(ratio, "%.2f")
    verdict = "" if ratio is None else " pass" if ratio >= target else " MISS"
    return f"{show(ratio, '%.2f')} ({target:.2f}{verdict})"


def print_times(contenders, cases):
    by_name = {c.name: c for c in contenders}
    print(f"\n{'case':30}" + "".join(f"{c.name:>12}" for c in contenders)
          + "".join(f"{'x ' + column:>19}" for column in TARGETS))
    for case in cases:
        row = f"{case:30}" + "".join(f"{c.cell(case, '%.2f'):>12}" for c in contenders)
        for column, targets in TARGETS.items():
            cell, against = "", reference(case, column)
            if against:
                name, other = against
                ratio = median_ratio(by_name[name].results[other], by_name["trunkd"].results[case])
                cell = judged(ratio, targets.get(case)) if by_name[name].process else "-"
            row += f"{cell:>19}"
        print(row.rstrip())
    print_reasons(contenders)


# --- scaling ---


def scaling(args, contenders, selected):
    """Two threads against one, beside what the machine gives two processes of one thread each that share
    nothing and never wait for each other."""
    cases = [c for c in selected if words(c)[4] == 2 and one_thread(c) in CASES]
    seconds = args.seconds or (0.5 if args.quick else 2.0)
    ours = contenders[0]
    twins = [Contender(f"process {i}", ours.command, ours.env) for i in (1, 2)]
    peers = {"infer": contenders[1], "train": contenders[2]}
    head = header(contenders, measure_peaks(ours, [r for c in cases for r in (one_thread(c), c)]),
                  f"{args.rounds} rounds of {seconds} s per case; milliseconds per call; process 1 and 2: at once, each")
    print("\n".join(head), flush=True)
    for number in range(args.rounds):
        for case in cases:
            single = one_thread(case)
            for contender in (ours, peers[words(case)[0]]):
                for threads in (single, case):
                    contender.measure(threads, f"{threads} {seconds}")
                    time.sleep(0.2)
            for twin in twins:  # builds the case, so that both begin to measure at once
                number or twin.ask(f"{single} 0")
            for twin in twins:
                twin.send(f"{single} {seconds}")
            for twin in twins:
                twin.keep(single, twin.receive(single))
        print(f"round {number + 1} of {args.rounds} done", file=sys.stderr, flush=True)
    print_scaling(ours, twins, peers, cases)
    everyone = [*contenders, *twins]
    asked = [c for case in cases for c in (one_thread(case), case)]
    write_csv(args, "engine-scaling", head, round_rows([c for c in everyone if c.results], asked, "milliseconds"))
    for twin in twins:
        twin.stop()


def print_scaling(ours, twins, peers, cases):
    print(f"\n{'case':30}{'1 thread':>10}{'2 threads':>11}{'faster':>8}{'2 processes':>13}{'of that':>9}{'the peer':>10}")
    for case in cases:
        single, peer = one_thread(case), peers[words(case)[0]]
        alone = ours.results[single]
        threads = median_ratio(alone, ours.results[case])
        shares = [median_ratio(alone, twin.results[single]) for twin in twins]
        processes = None if None in shares else sum(shares)
        theirs = median_ratio(peer.results[single], peer.results[case])
        print(f"{case:30}{ours.cell(single, '%.2f'):>10}{ours.cell(case, '%.2f'):>11}{show(threads, '%.2f'):>8}"
              f"{show(processes, '%.2f'):>13}{show(threads and processes and threads / processes, '%.2f'):>9}"
              f"{show(theirs, '%.2f'):>10}")
    print_reasons([ours, *twins])


# --- memory ---


def memory(args, contenders, selected):
    """Peak memory of training steps: a new process per contender, case and round."""
    cases = [c for c in selected if c.startswith("train") and words(c)[4] > 1]
    contenders = [c for c in contenders if c.name != "onnxruntime"]
    ours, torch = contenders
    head = header(contenders, {}, f"peak memory of a training step beyond the process's before the model"
                  f" was built, MiB; {args.rounds} rounds")
    print("\n".join(head), flush=True)
    for _ in range(args.rounds):
        for case in cases:
            for c in contenders:
                c.stop()
                c.start()
                c.measure(case, f"memory {case}")
    print(f"\n{'case':30}{'trunkd':>12}{'pytorch':>12}{'trunkd/pytorch':>22}")
    for case in cases:
        ratio = median_ratio(ours.results[case], torch.results.get(in_fp32(case), []))
        verdict = "" if ratio is None else " pass" if ratio <= MEMORY_TARGET else " MISS"
        print(f"{case:30}{ours.cell(case, '%.0f'):>12}{torch.cell(case, '%.0f'):>12}"
              f"{show(ratio, '%.2f') + f' ({MEMORY_TARGET:.2f}{verdict})':>22}")
    print_reasons(contenders)
    write_csv(args, "engine-memory", head, round_rows(contenders, cases, "mebibytes"))


# --- layers ---


def layers(args, contenders, selected):
    """trunkd's convolutions one by one, against the measured peaks."""
    cases = [c for c in selected if words(c)[5] == "fp32" or words(c)[0] == "train"]
    seconds = args.seconds or (0.05 if args.quick else 0.2)
    peaks = measure_peaks(contenders[0], cases)
    head = header(contenders[:1], peaks, f"{seconds} s per convolution and pass; milliseconds per call; "
                  "GFLOP/s of the direct method's arithmetic; GB/s of the compulsory traffic")
    print("\n".join(head), flush=True)
    rows = [["case"]]
    for case in cases:
        answer = subprocess.run([args.layer_program, *case.split(), str(seconds)], text=True,
                                stdout=subprocess.PIPE, check=True).stdout
        names, *values = csv.reader(answer.splitlines())
        rows[0][1:] = names
        rows += [[case, *v] for v in values]
        print_layers(case, [dict(zip(names, v)) for v in values], peaks[words(case)[4]])
    write_csv(args, "engine-layers", head, rows)


def roof_cells(ms, gflop, gbyte, peak):
    gflops, gbytes = gflop / ms * 1e3, gbyte / ms * 1e3
    return (f"{gflops:>10.1f}{100 * gflops / peak[0]:>7.0f} %"
            f"{gbytes:>10.1f}{100 * gbytes / peak[1]:>7.0f} %")


def print_layers(case, rows, peak):
    print(f"\n{case}\n{'units  convolution':42}{'pass':8}{'ms':>9}{'all, ms':>10}{'GFLOP/s':>10}"
          f"{'of peak':>9}{'GB/s':>10}{'of peak':>9}")
    sums = {pass_: (0, 0, 0) for pass_ in ["forward", "dx", "dw", "all"]}
    for r in rows:
        units, numbers = int(r["units"]), [float(r[n]) for n in ("ms", "gflop", "gbyte")]
        shape = f"{r['px']} px {r['ic']}->{r['oc']} {r['k']}x{r['k']}/{r['stride']} {r['way']}"
        print(f"{units:5}  {shape:35}{r['pass']:8}{numbers[0]:>9.3f}{units * numbers[0]:>10.3f}"
              + roof_cells(*numbers, peak))
        for name in (r["pass"], "all"):
            sums[name] = [s + units * n for s, n in zip(sums[name], numbers)]
    for name, (ms, gflop, gbyte) in sums.items():
        if ms > 0 and (name != "all" or sums["dw"][0] > 0):
            print(f"{'       sum':42}{name:8}{'':9}{ms:>10.3f}" + roof_cells(ms, gflop, gbyte, peak))


# --- command line ---


def parse():
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", action="append", metavar="WORDS",
                   help="cases that contain this, such as 'infer', resnet18 or 'resnet18 224 8 2 fp32';"
                        " may be given more than once")
    p.add_argument("--memory", action="store_true",
                   help="instead of times: peak memory of a training step, trunkd and PyTorch")
    p.add_argument("--layers", action="store_true",
                   help="instead of times: trunkd's convolutions one by one against the measured peaks")
    p.add_argument("--scaling", action="store_true",
                   help="instead of times: two threads against one, two processes of one thread at once, and the peer")
    p.add_argument("--rounds", type=int, help="default 7; 2 with --quick; 3 for --memory")
    p.add_argument("--seconds", type=float,
                   help="per case, contender and round: default 2, 0.5 with --quick;"
                        " with --layers per convolution and pass: 0.2, 0.05 with --quick")
    p.add_argument("--quick", action="store_true", help="few and short rounds, to see that it works")
    p.add_argument("--csv", metavar="FOLDER", help="write all numbers to a file there, named for the machine")
    p.add_argument("--cases", action="store_true", help="print the cases and exit")
    p.add_argument("--models", action="store_true", help="print the ONNX models they need and exit")
    p.add_argument("--engine", help="folder of engine_bench and engine_layers")
    p.add_argument("--torch", help="a python that has torch")
    p.add_argument("--ort", help="folder with node_modules/onnxruntime-node and onnx/")
    args = p.parse_args()
    args.rounds = args.rounds or (2 if args.quick else 3 if args.memory else 7)
    return args


def start_contenders(args):
    here = os.path.dirname(os.path.abspath(__file__))
    env, ort, torch = dict(os.environ), None, None
    if args.ort:
        ort = ["node", os.path.join(here, "peer_ort.js"), os.path.join(args.ort, "onnx")]
        env["NODE_PATH"] = os.path.join(args.ort, "node_modules")
    if args.torch:
        torch = [args.torch, os.path.join(here, "peer_torch.py")]
    return [Contender("trunkd", [os.path.join(args.engine, "engine_bench")], env),
            Contender("onnxruntime", ort, env), Contender("pytorch", torch, env)]


def main():
    args = parse()
    selected = [c for c in CASES if not args.only or any(o in c for o in args.only)]
    if args.cases:
        return print("\n".join(selected))
    if args.models:
        models = {"-".join(c.split()[1:4]) for c in selected if c.startswith("infer")}
        return print("\n".join(sorted(models)))
    if not selected:
        sys.exit("engine.py: no case contains that; see --cases")
    if not args.engine:
        sys.exit("engine.py: --engine is missing; engine.sh builds it")
    args.layer_program = os.path.join(args.engine, "engine_layers")
    contenders = start_contenders(args)
    (memory if args.memory else layers if args.layers else scaling if args.scaling else times)(args, contenders, selected)
    for contender in contenders:
        contender.stop()


if __name__ == "__main__":
    main()
