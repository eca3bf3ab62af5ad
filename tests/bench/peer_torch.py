#!/usr/bin/python3
"""The PyTorch side of the engine benchmark: answers one case per line, as engine_bench.c does.

    infer resnet18 224 8 2.0     ->  ok 123.4 16      (median milliseconds per call, calls)
    train resnet20 32 128 2.0    ->  ok 98.7 20
    version                      ->  ok 1.13.1

Eager mode, fp32. Each case is built once; both memory layouts are tried and the faster is kept.
"""
import os
import statistics
import sys
import time
import warnings

warnings.filterwarnings("ignore")
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden"))
from resnet_cifar import build

CLASSES = 100


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


def faster_layout(make, arch, px, batch):
    cases = {}
    for layout in (torch.contiguous_format, torch.channels_last):
        call = make(arch, px, batch, layout)
        cases[measure(call, 0.5)[0]] = (call, layout)
    call, layout = cases[min(cases)]
    print(f"torch: {arch} {px} px, batch {batch}: {layout} is faster", file=sys.stderr)
    return call


def main():
    if "--help" in sys.argv:
        print(__doc__)
        return
    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "2")))
    makers = {"infer": inference_case, "train": training_case}
    cases = {}
    for line in sys.stdin:
        words = line.split()
        if words == ["version"]:
            print("ok", torch.__version__, flush=True)
            continue
        kind, arch, px, batch, seconds = words
        key = (kind, arch, px, batch)
        if key not in cases:
            cases[key] = faster_layout(makers[kind], arch, int(px), int(batch))
        ms, calls = measure(cases[key], float(seconds))
        print(f"ok {ms:.4f} {calls}", flush=True)


main()
