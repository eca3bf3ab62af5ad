#!/usr/bin/python3
"""The PyTorch side of the engine benchmark: answers one request per line, as engine_bench.c does.

    version                               ->  ok 1.13.1
    infer resnet18 224 8 2 fp32 2.0       ->  ok 123.4 16      (median milliseconds per call, calls)
    train resnet20 32 128 2 fp32 2.0      ->  ok 98.7 20
    memory train resnet18 64 64 2 fp32    ->  ok 420.1         (MiB that the case adds to a process)

Eager mode, fp32. Each case is built once; both memory layouts are tried and the faster is kept, or,
where memory is asked for, the one that needs less.
"""
import os
import statistics
import sys
import time
import warnings
from multiprocessing import get_context

warnings.filterwarnings("ignore")
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))
from resnet_cifar import build

CLASSES = 100
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
MEMORY_CALLS = 3


def inference_case(arch, px, batch, layout):
    net = build(arch, CLASSES).eval().to(memory_format=layout)
    x = torch.randn(batch, 3, px, px).to(memory_format=layout)

    def call():
        with torch.inference_mode():
            net(x)

    return call


def training_case(arch, px, batch, layout):
    net = build(arch, CLASSES).train().to(memory_format=layout)
    x = torch.randn(batch, 3, px, px).to(memory_format=layout)
    y = torch.randint(CLASSES, (batch,))
    loss_of = torch.nn.CrossEntropyLoss()
    sgd = torch.optim.SGD(net.parameters(), 0.001, momentum=0.9, weight_decay=5e-4, nesterov=True)

    def call():
        sgd.zero_grad(set_to_none=True)
        loss_of(net(x), y).backward()
        sgd.step()

    return call


def make(case, layout):
    """The call of a case, which is KIND ARCH PX BATCH THREADS PRECISION."""
    kind, arch, px, batch, threads, precision = case
    layout = LAYOUTS[layout]
    if precision != "fp32":
        raise ValueError("measured in fp32 only")
    torch.set_num_threads(int(threads))
    maker = {"infer": inference_case, "train": training_case}[kind]
    return maker(arch, int(px), int(batch), layout)


def measure(call, seconds):
    """Median milliseconds of the calls that fit into `seconds`, after one that is not counted."""
    call()
    times = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times), len(times)


def faster_layout(case):
    calls = [make(case, layout) for layout in LAYOUTS]
    return min(calls, key=lambda call: measure(call, 0.5)[0])


def status_mib(field):
    """MiB in a field of /proc/self/status."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(field + ":")) / 1024


def peak_memory(case, layout):
    """MiB that building the case and a few calls add to what the process, with torch, holds."""
    before = status_mib("VmRSS")
    call = make(case, layout)
    for _ in range(MEMORY_CALLS):
        call()
    return status_mib("VmHWM") - before


def least_memory(case):
    """The better of the layouts, each measured in a process of its own."""
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return min(pool.starmap(peak_memory, [(case, layout) for layout in LAYOUTS], chunksize=1))


def answer(line, cases):
    words = line.split()
    if words == ["version"]:
        return torch.__version__
    if words[0] == "memory":
        return f"{least_memory(words[1:]):.1f}"
    case, seconds = tuple(words[:-1]), float(words[-1])
    if case not in cases:
        cases[case] = faster_layout(case)
    torch.set_num_threads(int(case[4]))
    ms, calls = measure(cases[case], seconds)
    return f"{ms:.4f} {calls}"


def main():
    if "--help" in sys.argv:
        print(__doc__)
        return
    cases = {}
    for line in sys.stdin:
        try:
            print("ok", answer(line, cases), flush=True)
        except Exception as e:
            print("error:", str(e).split("\n")[0], flush=True)


if __name__ == "__main__":
    main()
