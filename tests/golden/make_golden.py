#!/usr/bin/python3
"""Writes the golden numbers that tests/engine/test_parity_*.c hold the engine to, from PyTorch in
double precision.

    make_golden.py [FOLDER]     FOLDER is this script's own unless given

Weights, batch norm, images and labels are not stored: both sides draw them from the counter-based
generator (rng.py here, engine/rng.h there) under the file's seed; tests/engine/parity.c restates the
rules of values(), images() and labels(). A golden file is text, one entry per line: a key and its
numbers. A tensor's entry is its Euclidean norm and SAMPLES of its elements, at the places
rng.below(seed, stream("sample." + name), i, count) of torchvision's (OIHW) order.
"""
import os
import sys
import warnings

import numpy as np
import torch
import torch.nn.functional as F

import rng
from resnet_cifar import build

SAMPLES = 48
CLASSES = 10
TRAIN_IMAGES = 32  # the short training run goes round and round over these
TRAIN_BATCH = 16
TRAIN_STEPS = 20
TRAIN_WARMUP = 5
TRAIN_RATE = 0.005  # training is chaotic: at 0.05 PyTorch's single precision ends 1 % off
TRAIN_DECAY = 0.02  # forty times the usual, to be seen in so few steps


def values(name, shape, seed):
    """Start value of one tensor: He normal convolutions (tk_params_init); batch norm not the identity,
    and on so small a scale that its epsilon counts."""
    count = int(np.prod(shape))
    stream = rng.stream(name)
    index = np.arange(count)
    if len(shape) == 4:
        out = rng.init_trunk({name: shape}, seed)[name]
    elif name == "fc.weight":
        out = np.float32(1 / np.sqrt(shape[1])) * rng.normal(seed, stream, index)
    elif name.endswith("running_var"):
        out = np.float32(0.0075) + np.float32(0.005) * rng.uniform(seed, stream, index)
    elif name.endswith("weight"):  # gamma
        out = np.float32(0.05) + np.float32(0.05) * rng.uniform(seed, stream, index)
    else:  # beta, running mean, fc.bias
        out = np.float32(0.125) * rng.normal(seed, stream, index)
    return out.reshape(shape)


def images(n, px, seed):
    """Standard normal pixels on standard normal 8 x 8 blocks of colour (so that images differ after
    the pooling, too), drawn in NHWC order; returned as NCHW doubles."""
    x = rng.normal(seed, rng.stream("images"), np.arange(n * px * px * 3)).reshape(n, px, px, 3)
    blocks = rng.normal(seed, rng.stream("blocks"), np.arange(n * 8 * 8 * 3)).reshape(n, 8, 8, 3)
    x = x + blocks.repeat(px // 8, axis=1).repeat(px // 8, axis=2)
    return torch.from_numpy(x).double().permute(0, 3, 1, 2).contiguous()


def labels(n, seed):
    return torch.from_numpy(rng.below(seed, rng.stream("labels"), np.arange(n), CLASSES))


def network(arch, seed):
    net = build(arch, CLASSES).double()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.dtype == torch.float64:
                tensor.copy_(torch.from_numpy(values(name, tuple(tensor.shape), seed)))
    return net


def sample(name, tensor, seed):
    flat = tensor.detach().reshape(-1)
    places = rng.below(seed, rng.stream("sample." + name), np.arange(SAMPLES), flat.numel())
    return [flat.norm().item()] + flat[torch.from_numpy(places)].tolist()


def quiet_shift(z):
    """For one channel's ReLU inputs: the shift, at most a tenth of their deviation, after which the
    inputs stay farthest from 0; and that distance in deviations."""
    deviation = z.std().item()
    window = 0.1 * deviation
    inside = z[z.abs() < window]
    edges = torch.cat([torch.tensor([-window, window], dtype=z.dtype), inside]).sort().values
    gaps = edges[1:] - edges[:-1]
    widest = gaps.argmax()
    return -(edges[widest] + gaps[widest] / 2), (gaps[widest] / 2 / deviation).item()


def quieten(net, x):
    """Moves every beta that feeds a ReLU a little, so that no ReLU sits on its kink: there, single
    precision may fall on the other side, which no tolerance could tell from an error. One forward
    pass; returns the smallest distance left."""
    last, distances = {}, []

    def remember(module, _inputs, _output):
        last["bn"] = module

    def shift(_module, inputs):
        z, beta = inputs[0].detach().clone(), last["bn"].bias.detach()
        for c in range(z.shape[1]):
            move, distance = quiet_shift(z[:, c].reshape(-1))
            moved = (beta[c] + move).float().double()  # as the file and the engine hold it
            z[:, c] += moved - beta[c]
            beta[c] = moved
            distances.append(distance)
        return (z,)

    hooks = []
    for name, module in net.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d) and "downsample" not in name:
            hooks.append(module.register_forward_hook(remember))
        if isinstance(module, torch.nn.ReLU):
            hooks.append(module.register_forward_pre_hook(shift))
    running = {name: buffer.clone() for name, buffer in net.named_buffers()}
    with torch.no_grad():
        net(x)
        for name, buffer in net.named_buffers():
            buffer.copy_(running[name])
    for hook in hooks:
        hook.remove()
    return min(distances)


def pool_distance(net, x):
    """Smallest lead of the largest over the second largest positive input in any max-pool window, in
    units of the inputs' root mean square."""
    if not hasattr(net, "maxpool"):
        return float("inf")
    found = []

    def look(_module, inputs):
        z = F.pad(inputs[0].detach(), (1, 1, 1, 1))
        top = F.unfold(z.reshape(-1, 1, *z.shape[2:]), 3, stride=2).topk(2, dim=1).values
        lead = (top[:, 0] - top[:, 1])[top[:, 0] > 0].min()
        found.append((lead / inputs[0].square().mean().sqrt()).item())

    hook = net.maxpool.register_forward_pre_hook(look)
    with torch.no_grad():
        net(x)
    hook.remove()
    return found[0]


def quiet_network(arch, px, batch, train):
    """A network and its seed, far from the kinks of ReLU and max pooling."""
    for seed in range(1, 100):
        net = network(arch, seed).train(train)
        x = images(batch, px, seed)
        distance = quieten(net, x)
        start = {name: value.clone() for name, value in net.state_dict().items()}
        if pool_distance(net, x) > 5e-6:
            net.load_state_dict(start)
            print(arch, "train" if train else "frozen", f"ReLUs are {distance:.1e} from their kinks")
            return net, seed
    raise SystemExit("no seed keeps away from the kinks")


def logits_entries(arch, px, batch, seed=1):
    with torch.no_grad():
        logits = network(arch, seed).eval()(images(batch, px, seed))
    return {"px": px, "batch": batch, "classes": CLASSES, "seed": seed,
            "logits": logits.reshape(-1).tolist()}


def step_entries(arch, px, batch, mode):
    """One training step with the batch's or with frozen statistics: the betas to start from, loss,
    every gradient, and what the batch does to the running statistics or, where those are frozen, the
    sum over the images of the squared gradients of each one's own loss."""
    net, seed = quiet_network(arch, px, batch, mode == "batch")
    out = {"px": px, "batch": batch, "classes": CLASSES, "seed": seed}
    for name, tensor in net.state_dict().items():
        if name.endswith(".bias") and name != "fc.bias":
            out["start/" + name] = tensor.tolist()
    loss = F.cross_entropy(net(images(batch, px, seed)), labels(batch, seed))
    loss.backward()
    out["loss"] = loss.item()
    for name, parameter in net.named_parameters():
        out["grad/" + name] = sample(name, parameter.grad, seed)
    for name, buffer in net.named_buffers():
        if mode == "batch" and buffer.dtype == torch.float64:
            out["after/" + name] = sample(name, buffer, seed)
    if mode == "frozen":
        for name, squares in squared_gradients(net, images(batch, px, seed), labels(batch, seed)):
            out["squares/" + name] = sample(name, squares, seed)
    return out


def squared_gradients(net, x, y):
    trunk = [(n, p) for n, p in net.named_parameters() if not n.startswith("fc.")]
    sums = [torch.zeros_like(p) for _, p in trunk]
    for i in range(len(x)):
        loss = F.cross_entropy(net(x[i:i + 1]), y[i:i + 1])
        gradients = torch.autograd.grad(loss, [p for _, p in trunk])
        sums = [s + g * g for s, g in zip(sums, gradients)]
    return [(name, s) for (name, _), s in zip(trunk, sums)]


def rate(step):
    """One cycle: linearly up to the peak over the warm-up, then linearly down to 0."""
    if step < TRAIN_WARMUP:
        return TRAIN_RATE * (step + 1) / TRAIN_WARMUP
    return TRAIN_RATE * (TRAIN_STEPS - step) / (TRAIN_STEPS - TRAIN_WARMUP)


def train_entries(arch, px, seed=1):
    """Losses of a short run and where it ends: SGD with Nesterov momentum, decay on the weights of
    convolutions and of the head only."""
    net = network(arch, seed).train()
    x, y = images(TRAIN_IMAGES, px, seed), labels(TRAIN_IMAGES, seed)
    decayed = [p for p in net.parameters() if p.dim() > 1]
    plain = [p for p in net.parameters() if p.dim() == 1]
    sgd = torch.optim.SGD([{"params": decayed, "weight_decay": TRAIN_DECAY}, {"params": plain}],
                          lr=1.0, momentum=0.9, nesterov=True)
    losses = []
    for step in range(TRAIN_STEPS):
        at = [(step * TRAIN_BATCH + i) % TRAIN_IMAGES for i in range(TRAIN_BATCH)]
        for group in sgd.param_groups:
            group["lr"] = rate(step)
        sgd.zero_grad()
        loss = F.cross_entropy(net(x[at]), y[at], label_smoothing=0.1)
        loss.backward()
        sgd.step()
        losses.append(loss.item())
    out = {"px": px, "batch": TRAIN_BATCH, "classes": CLASSES, "seed": seed,
           "images": TRAIN_IMAGES, "steps": TRAIN_STEPS, "warmup": TRAIN_WARMUP,
           "rate": TRAIN_RATE, "decay": TRAIN_DECAY, "losses": losses}
    for name, parameter in net.named_parameters():
        out["end/" + name] = sample(name, parameter, seed)
    return out


def write(folder, name, entries):
    with open(os.path.join(folder, name + ".txt"), "w") as f:
        f.write(f"# make_golden.py, torch {torch.__version__}, double precision\n")
        for key, numbers in entries.items():
            numbers = numbers if isinstance(numbers, list) else [numbers]
            f.write(key + " " + " ".join("%.9g" % v for v in numbers) + "\n")
    print(name, "seed", entries["seed"], flush=True)


def main():
    if "--help" in sys.argv[1:]:
        print(__doc__)
        return
    warnings.filterwarnings("ignore")
    folder = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))
    write(folder, "logits_resnet18_64", logits_entries("resnet18", 64, 2))
    write(folder, "logits_resnet18_224", logits_entries("resnet18", 224, 2))
    write(folder, "logits_resnet50_64", logits_entries("resnet50", 64, 2))
    write(folder, "logits_resnet50_224", logits_entries("resnet50", 224, 1))
    for mode in ("batch", "frozen"):
        write(folder, "step_resnet20_" + mode, step_entries("resnet20", 32, 8, mode))
        write(folder, "step_resnet18_" + mode, step_entries("resnet18", 64, 4, mode))
    write(folder, "train_resnet20", train_entries("resnet20", 32))


if __name__ == "__main__":
    main()
